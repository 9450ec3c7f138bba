"""What became of a simulated run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deepseek.core.decisions import Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutcome:
    """One request, as its client saw it."""

    sent_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    """Infinite where no token came: refused, or lost in a failed step."""
    itl_s: float
    """Mean time between tokens; 0 for an answer of one."""
    ended_s: float
    """When it was answered, refused or lost."""
    is_refused: bool = False
    is_failed: bool = False

    def is_in_time(self, *, ttft_s: float, itl_s: float) -> bool:
        """Say whether the whole answer kept both promises."""
        is_answered = not (self.is_refused or self.is_failed)
        return is_answered and self.ttft_s <= ttft_s and self.itl_s <= itl_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOutcome:
    """One model's part of a run."""

    requests: Sequence[RequestOutcome]
    """In the order in which they were sent."""
    busy_s: float
    """Device time used."""
    num_steps: int
    num_preemptions: int
    decisions: Sequence[Decision]

    def attainment(self, *, ttft_s: float = math.inf, itl_s: float = math.inf) -> float:
        """Return the part of the requests answered in time, from 0 to 1."""
        in_time = sum(r.is_in_time(ttft_s=ttft_s, itl_s=itl_s) for r in self.requests)
        return in_time / len(self.requests) if self.requests else 1.0

    @property
    def num_refused(self) -> int:
        return sum(request.is_refused for request in self.requests)

    def ttft_percentile(self, percent: float) -> float:
        """Return a percentile of the time to the first token, in seconds."""
        return percentile([request.ttft_s for request in self.requests], percent)

    def itl_percentile(self, percent: float) -> float:
        """Return a percentile of the answers' mean times between tokens, in seconds."""
        return percentile([r.itl_s for r in self.requests if r.output_tokens > 1], percent)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOutcome:
    """A run of all models of a device."""

    models: dict[str, ModelOutcome]
    duration_s: float
    """Virtual time until the last request was over."""

    @property
    def busy_s(self) -> float:
        return sum(model.busy_s for model in self.models.values())

    @property
    def utilization(self) -> float:
        """Part of the time in which steps ran."""
        return self.busy_s / self.duration_s if self.duration_s else 0.0


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent do not exceed; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]
