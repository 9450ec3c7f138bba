"""A device of constant step times under a step policy; its clock is the sum of the steps."""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from deepseek.scheduling.sharing.base import StepPolicy


@dataclass(slots=True)
class Device:
    """Steps whoever the policy picks, and keeps the schedule."""

    policy: StepPolicy
    step_s: Callable[[str], float]
    now_s: float = 0.0
    steps: list[tuple[float, str, float]] = field(default_factory=list)
    """Start, model and seconds of each."""

    def run(self, ready: list[str], *, for_s: float) -> None:
        """Keep these models backlogged for so long."""
        end_s = self.now_s + for_s
        while self.now_s < end_s:
            model = self.policy.pick(ready)
            assert model in ready
            seconds = self.step_s(model)
            self.steps.append((self.now_s, model, seconds))
            self.policy.charge(model, seconds)
            self.now_s += seconds

    def served(self, model: str, *, start_s: float, end_s: float) -> float:
        """Return the seconds of a model inside a window."""
        return sum(
            max(0.0, min(at_s + seconds, end_s) - max(at_s, start_s))
            for at_s, name, seconds in self.steps
            if name == model
        )

    def worst_window(self, model: str, *, window_s: float) -> float:
        """Return the least part that a model has of any window.

        That window begins or ends where a step does: between those, its part is linear.
        """
        edges = {at_s for at_s, _, _ in self.steps} | {self.now_s}
        starts = [s for e in edges for s in (e, e - window_s) if 0 <= s <= self.now_s - window_s]
        served = _cumulative(self.steps, model)
        return min((served(s + window_s) - served(s)) / window_s for s in starts)


def constant(step_s: Mapping[str, float]) -> Callable[[str], float]:
    """Return a model's step time, the same each time."""
    return lambda model: step_s[model]


def _cumulative(steps: list[tuple[float, str, float]], model: str) -> Callable[[float], float]:
    starts = [at_s for at_s, _, _ in steps]
    sums = [0.0]
    for _, name, seconds in steps:
        sums.append(sums[-1] + (seconds if name == model else 0.0))

    def served(at_s: float) -> float:
        index = bisect_right(starts, at_s) - 1
        start_s, name, seconds = steps[index]
        part_s = min(at_s - start_s, seconds) if name == model else 0.0
        return sums[index] + part_s

    return served
