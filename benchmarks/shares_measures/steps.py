"""Reads a step record: each model's part of the device, over all and in the worst window."""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One engine step; times are the worker's monotonic clock, which is the machine's."""

    start_s: float
    model: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps in the order they ran in, one at a time."""

    steps: Sequence[Step]

    def between(self, start_s: float, end_s: float) -> "Steps":
        """Return the steps that lie inside a time."""
        return Steps(
            [s for s in self.steps if start_s <= s.start_s and s.start_s + s.seconds <= end_s]
        )

    def seconds(self, model: str | None = None) -> float:
        """Return the device time of one model, or of all."""
        return sum(step.seconds for step in self.steps if model in (None, step.model))

    def part(self, model: str) -> float:
        """Return a model's part of all device time."""
        return self.seconds(model) / self.seconds()

    def longest_s(self, *, without: str) -> float:
        """Return the longest step of the others."""
        return max(step.seconds for step in self.steps if step.model != without)

    def worst_window(self, model: str, *, window_s: float) -> float:
        """Return the least part of the device time of a window that a model had.

        Windows are of `window_s` device time: the pauses between steps belong to nobody.
        """
        starts = [0.0, *accumulate(step.seconds for step in self.steps)]
        mine = [s.seconds if s.model == model else 0.0 for s in self.steps]
        sums = [0.0, *accumulate(mine)]
        end_s = starts[-1]

        def served(at_s: float) -> float:
            index = min(bisect_right(starts, at_s) - 1, len(mine) - 1)
            return sums[index] + min(at_s - starts[index], mine[index])

        # Between two edges of steps the part is linear, so the worst window touches one.
        edges = [s for edge in starts for s in (edge, edge - window_s)]
        inside = [s for s in edges if 0 <= s <= end_s - window_s]
        if not inside:
            return float("nan")
        return min((served(s + window_s) - served(s)) / window_s for s in inside)


def read_steps(path: Path) -> Steps:
    """Return what a worker recorded; it must have ended, or its last lines are not there yet."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return Steps(
        [
            Step(start_s=line["t"], model=line["model"], seconds=line["s"])
            for line in map(json.loads, lines)
        ]
    )
