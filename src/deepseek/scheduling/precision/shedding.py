"""When a model's load is such that requests which leave the choice to it are computed in INT4.

A loop over the worker's load reports, as the batch controller's (`scheduling.batching`), but one
that never refuses or delays anybody: it trades quality, within the floor, for speed. It begins when
requests have been waiting too long, or deadlines been missed, in two reports in a row; it ends when
neither has come near that for a while. What lies between keeps it as it is, so that a load at the
threshold does not have every other request in another precision.
"""

from dataclasses import dataclass

from deepseek.core.decisions import Decision, TimeScale
from deepseek.core.load import ModelLoad
from deepseek.core.residency import Residency

PRESSED_REPORTS = 2
"""In a row, before shedding begins: a single one may be a prompt that came with nothing to do."""
CALM_PART = 0.5
"""Part of the wait that begins it, below which the load is calm again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SheddingLimits:
    """When to begin and when to end."""

    wait_s: float
    """How long the oldest request may have waited for its first step."""
    calm_s: float
    """How long the load must have been calm before shedding ends."""

    def __post_init__(self) -> None:
        if self.wait_s <= 0 or self.calm_s < 0:
            raise ValueError("wait_s must be above 0, calm_s not below it")


class LoadShedding:
    """One model's; told of every load report."""

    def __init__(self, model: str, limits: SheddingLimits) -> None:
        self._model = model
        self.limits = limits
        self.is_active = False
        """True while load is being shed."""
        self._num_pressed = 0
        self._calm_since_s: float | None = None

    def adjust(self, load: ModelLoad, *, now_s: float) -> list[Decision]:
        """Take a report made at `now_s`, which never goes back; return what it changed."""
        pressure = self._pressure(load)
        self._num_pressed = self._num_pressed + 1 if pressure is not None else 0
        if not self._is_calm(load):
            self._calm_since_s = None
        elif self._calm_since_s is None:
            self._calm_since_s = now_s
        if pressure is not None and not self.is_active and self._num_pressed >= PRESSED_REPORTS:
            self.is_active = True
            reason = f"{pressure}: requests that name no precision get int4"
            return [self._decision("shed-precision", reason, load, now_s=now_s)]
        calm_s = 0.0 if self._calm_since_s is None else now_s - self._calm_since_s
        if self.is_active and self._calm_since_s is not None and calm_s >= self.limits.calm_s:
            self.is_active = False
            reason = f"the load has been calm for {calm_s:.3g} s: requests get their precision back"
            return [self._decision("restore-precision", reason, load, now_s=now_s)]
        return []

    def _pressure(self, load: ModelLoad) -> str | None:
        """Say in words what presses; None where nothing does, or where nothing is known.

        What waits for the model itself to be loaded says nothing about its steps.
        """
        if load.residency is not Residency.READY:
            return None
        oldest_s, slack_s = load.oldest_wait_s, load.deadline_slack_s
        if oldest_s is not None and oldest_s >= self.limits.wait_s:
            return f"the oldest request has waited {oldest_s:.3g} s for its first step"
        if slack_s is not None and slack_s < 0:
            return f"a deadline has been missed by {-slack_s * 1000:.3g} ms"
        return None

    def _is_calm(self, load: ModelLoad) -> bool:
        oldest_s, slack_s = load.oldest_wait_s or 0.0, load.deadline_slack_s
        return oldest_s < CALM_PART * self.limits.wait_s and (slack_s is None or slack_s >= 0)

    def _decision(self, action: str, reason: str, load: ModelLoad, *, now_s: float) -> Decision:
        signals = {
            "oldest_wait_s": load.oldest_wait_s,
            "deadline_slack_s": load.deadline_slack_s,
            "num_waiting": load.num_waiting,
            "num_running": load.num_running,
        }
        return Decision(
            at_s=now_s,
            model=self._model,
            scale=TimeScale.MEDIUM,
            action=action,
            reason=reason,
            signals={name: value for name, value in signals.items() if value is not None},
        )
