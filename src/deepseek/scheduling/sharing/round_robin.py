"""Every model with work in turn, whatever its steps cost: a baseline that keeps no promise."""

import math
from collections.abc import Mapping, Sequence

from deepseek.core.qos import QoS


class RoundRobin:
    """See `deepseek.scheduling.sharing.base.StepPolicy`."""

    def __init__(self, models: Mapping[str, QoS], *, max_step_s: float) -> None:
        """Take the order of the deployment file."""
        self._order = list(models)
        self._last = -1

    def pick(self, ready: Sequence[str]) -> str:
        """Return the next model after the last one."""
        count = len(self._order)
        for offset in range(1, count + 1):
            index = (self._last + offset) % count
            if self._order[index] in ready:
                self._last = index
                return self._order[index]
        raise LookupError("pick() was called with no model that this policy knows")

    def charge(self, model: str, seconds: float) -> None:
        """Ignore the cost."""

    def max_step_s(self, model: str) -> float:
        """Bound nothing."""
        return math.inf

    def reconfigure(self, models: Mapping[str, QoS]) -> None:
        """Keep the order; settings change nothing here."""
        self._order = list(models)
        self._last = min(self._last, len(self._order) - 1)
