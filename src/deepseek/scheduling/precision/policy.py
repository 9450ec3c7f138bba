"""Which precision a request gets: what it named, or what the model's policy says of its kind.

The order is that of a plain sentence: a request that names a precision gets it; else the first rule
that fits it decides, else the default; while load is being shed, INT4 instead of INT8, unless the
rule keeps it; and nothing below the floor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from deepseek.core.precision import Precision, finer


class Reason(StrEnum):
    """What decided on a precision."""

    NAMED = "named"
    """The request named it."""
    RULE = "rule"
    DEFAULT = "default"
    SHED = "shed"
    """The load: in a calmer hour it would have been a finer one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionChoice:
    """What a request is computed in, and what decided it."""

    precision: Precision
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestKind:
    """What rules may look at."""

    num_prompt_tokens: int
    """Of the longest prompt."""
    max_answer_tokens: int
    """The answer's budget."""
    service_tier: str | None = None
    """The class that the request says it is of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionRule:
    """A precision for requests of one kind: those that every bound lets through."""

    use: Precision
    service_tiers: Sequence[str] = ()
    """Classes it is for; empty: all, and requests of none."""
    min_prompt_tokens: int = 0
    max_prompt_tokens: int | None = None
    min_answer_tokens: int = 0
    max_answer_tokens: int | None = None
    is_kept: bool = False
    """Load shedding leaves these requests their precision."""

    def fits(self, kind: RequestKind) -> bool:
        """Say whether the rule is for this kind of request."""
        return (
            (not self.service_tiers or kind.service_tier in self.service_tiers)
            and _within(kind.num_prompt_tokens, self.min_prompt_tokens, self.max_prompt_tokens)
            and _within(kind.max_answer_tokens, self.min_answer_tokens, self.max_answer_tokens)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionPolicy:
    """One model's rules; decides without a clock, and the same again for the same request."""

    default: Precision = Precision.INT8
    minimum: Precision = Precision.INT4
    """The model's floor."""
    rules: Sequence[PrecisionRule] = ()
    """The first that fits decides."""

    def choose(
        self,
        kind: RequestKind,
        *,
        named: Precision | None = None,
        is_shedding: bool = False,
        floor: Precision | None = None,
    ) -> PrecisionChoice | None:
        """Return a request's precision; None where it named one that lies below its floor.

        `floor`: that of whoever asks, beside the model's own; the finer of the two holds.
        """
        least = self.minimum if floor is None else finer(self.minimum, floor)
        if named is not None:
            allowed = finer(named, least) is named
            return PrecisionChoice(precision=named, reason=Reason.NAMED) if allowed else None
        rule = next((rule for rule in self.rules if rule.fits(kind)), None)
        calm = finer(self.default if rule is None else rule.use, least)
        shed = finer(Precision.INT4, least)
        if is_shedding and not (rule is not None and rule.is_kept) and shed is not calm:
            return PrecisionChoice(precision=shed, reason=Reason.SHED)
        reason = Reason.DEFAULT if rule is None else Reason.RULE
        return PrecisionChoice(precision=calm, reason=reason)

    @property
    def service_tiers(self) -> frozenset[str]:
        """The classes of requests that some rule tells from others."""
        return frozenset(tier for rule in self.rules for tier in rule.service_tiers)


def _within(value: int, least: int, most: int | None) -> bool:
    return least <= value and (most is None or value <= most)
