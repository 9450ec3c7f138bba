"""Settings of which precision a model's requests get (`models.NAME.precision`)."""

from typing import Literal

from pydantic import Field

from deepseek.core.precision import Precision
from deepseek.core.settings import DurationSeconds, Settings
from deepseek.scheduling.precision.policy import PrecisionPolicy, PrecisionRule
from deepseek.scheduling.precision.shedding import SheddingLimits


class PrecisionRuleSettings(Settings):
    """A precision for requests of one kind: those that all of its bounds let through."""

    use: Literal["int8", "int4"]
    """Precision of these requests."""
    service_tiers: list[Literal["flex", "priority"]] = Field(default_factory=list)
    """Classes of requests (the field `service_tier`) that the rule is for; default: all."""
    min_prompt_tokens: int = Field(default=0, ge=0)
    """Least length of the prompt; default 0."""
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    """Greatest length of the prompt; default: any."""
    min_answer_tokens: int = Field(default=0, ge=0)
    """Least budget of the answer (`max_tokens`); default 0."""
    max_answer_tokens: int | None = Field(default=None, ge=1)
    """Greatest budget of the answer; default: any."""
    keep: bool = False
    """Leave these requests their precision while load is being shed; default false."""

    def to_rule(self) -> PrecisionRule:
        """Return what the policy reads."""
        return PrecisionRule(
            use=Precision(self.use),
            service_tiers=tuple(self.service_tiers),
            min_prompt_tokens=self.min_prompt_tokens,
            max_prompt_tokens=self.max_prompt_tokens,
            min_answer_tokens=self.min_answer_tokens,
            max_answer_tokens=self.max_answer_tokens,
            is_kept=self.keep,
        )


class SheddingSettings(Settings):
    """When requests that name no precision are computed in INT4 for the load's sake."""

    wait: DurationSeconds = Field(default=2.0, gt=0)
    """How long the oldest request may have waited for its first step, in two load reports in a row,
    before shedding begins; a missed deadline begins it too. Default 2s."""
    calm: DurationSeconds = Field(default=10.0, ge=0)
    """How long nobody must have waited for half of `wait`, nor missed a deadline, before it ends;
    default 10s."""

    def to_limits(self) -> SheddingLimits:
        """Return what the loop reads."""
        return SheddingLimits(wait_s=self.wait, calm_s=self.calm)


class PrecisionSettings(Settings):
    """Which precision requests get that name none, and the least that any gets."""

    default: Literal["int8", "int4"] = "int8"
    """Precision of requests that name none and that no rule fits; default `int8`."""
    minimum: Literal["int8", "int4"] = "int4"
    """The floor: no request gets less, and one that names less is refused; default `int4`."""
    rules: list[PrecisionRuleSettings] = Field(default_factory=list)
    """Precisions by kind of request; the first that fits decides. Default: none."""
    shedding: SheddingSettings | None = None
    """Give requests INT4 that name no precision while too many wait; default: never."""

    def to_policy(self) -> PrecisionPolicy:
        """Return what decides on requests."""
        return PrecisionPolicy(
            default=Precision(self.default),
            minimum=Precision(self.minimum),
            rules=tuple(rule.to_rule() for rule in self.rules),
        )
