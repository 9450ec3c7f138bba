"""A device whose models have work in bursts; its clock jumps over the time that nobody uses."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from deepseek.scheduling.sharing.base import StepPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one model is given to do, and how."""

    steps_s: Sequence[float]
    """What its steps take, over and over."""
    bursts: Sequence[tuple[float, int]] = ((0.0, 10**9),)
    """Steps that come at a time, in order; default: more than there will be time for."""

    @property
    def longest_s(self) -> float:
        return max(self.steps_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    model: str
    started_s: float
    seconds: float
    ready: frozenset[str]
    """Who had work when it began."""

    @property
    def ended_s(self) -> float:
        return self.started_s + self.seconds


@dataclass(slots=True)
class _Source:
    work: Work
    durations: Iterator[float] = field(init=False)
    next_s: float = field(init=False)
    num_taken: int = 0

    def __post_init__(self) -> None:
        self.durations = itertools.cycle(self.work.steps_s)
        self.next_s = next(self.durations)

    def is_ready(self, now_s: float) -> bool:
        return sum(n for at_s, n in self.work.bursts if at_s <= now_s) > self.num_taken

    def wakes_s(self, now_s: float) -> float:
        return min((at_s for at_s, _ in self.work.bursts if at_s > now_s), default=math.inf)

    def take(self) -> float:
        seconds = self.next_s
        self.num_taken += 1
        self.next_s = next(self.durations)
        return seconds


class BurstyDevice:
    """Runs a policy over some work; may be looked at, or given other settings, in between."""

    def __init__(self, policy: StepPolicy, work: Mapping[str, Work]) -> None:
        self.policy = policy
        self.steps: list[Step] = []
        self.now_s = 0.0
        self._sources = {name: _Source(of_model) for name, of_model in work.items()}

    def run(self, until_s: float) -> list[Step]:
        """Step until then, or until nothing is left to do; return all steps so far."""
        while self.now_s < until_s:
            ready = self.ready()
            if ready:
                self._step(ready)
                continue
            self.now_s = min(source.wakes_s(self.now_s) for source in self._sources.values())
        return self.steps

    def ready(self) -> list[str]:
        return [name for name, source in self._sources.items() if source.is_ready(self.now_s)]

    def _step(self, ready: Sequence[str]) -> None:
        model = self.policy.pick(ready)
        seconds = self._sources[model].take()
        self.policy.charge(model, seconds)
        step = Step(model=model, started_s=self.now_s, seconds=seconds, ready=frozenset(ready))
        self.steps.append(step)
        self.now_s += seconds


def used_s(steps: Sequence[Step]) -> dict[str, float]:
    """Return the device time of each model that stepped."""
    used: dict[str, float] = {}
    for step in steps:
        used[step.model] = used.get(step.model, 0.0) + step.seconds
    return used


def largest_arrears(steps: Sequence[Step], model: str, *, part: float) -> float:
    """Return how far a model fell behind its part in any stretch of time in which it had work."""
    ahead_s = highest_s = arrears_s = 0.0
    for step in steps:
        if model not in step.ready:
            ahead_s = highest_s = 0.0
            continue
        ahead_s += (step.seconds if step.model == model else 0.0) - part * step.seconds
        highest_s = max(highest_s, ahead_s)
        arrears_s = max(arrears_s, highest_s - ahead_s)
    return arrears_s
