"""Which of several models on one device steps next.

A policy is told what each step cost and picks among the models that have work. Plug-in point:
entry-point group `deepseek.step_policies`.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Protocol

from deepseek.core.errors import ConfigurationError


class StepPolicy(Protocol):
    """Picks the next model; holds no reference to engines."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        """Start with each model's weight, by name."""
        ...

    def pick(self, ready: Sequence[str]) -> str:
        """Return one of `ready`, which is never empty; changes only the policy's own state."""
        ...

    def charge(self, model: str, seconds: float) -> None:
        """Account one step's device time."""
        ...


class FairShare:
    """Start-time fair queueing over measured device time (Goyal et al., SIGCOMM 1996).

    Each model has a virtual time that grows by `seconds / share`; the least goes next. A model that
    was idle resumes at the virtual time of the others, so idleness earns no credit.
    """

    def __init__(self, shares: Mapping[str, float]) -> None:
        """Start with every virtual time at zero."""
        self._shares = dict(shares)
        self._times = dict.fromkeys(shares, 0.0)
        self._now = 0.0
        self._was_ready: set[str] = set()

    def pick(self, ready: Sequence[str]) -> str:
        """Return the model with the least virtual time; the earlier name wins a tie."""
        for model in ready:
            if model not in self._was_ready:
                self._times[model] = max(self._times[model], self._now)
        self._was_ready = set(ready)
        chosen = min(ready, key=self._times.__getitem__)
        self._now = max(self._now, self._times[chosen])
        return chosen

    def charge(self, model: str, seconds: float) -> None:
        """Advance a model's virtual time."""
        self._times[model] += seconds / self._shares[model]


class RoundRobin:
    """Every model with work in turn, whatever its steps cost."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        """Take the order of the deployment file."""
        self._order = list(shares)
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


_BUILT_IN: dict[str, type[StepPolicy]] = {"fair-share": FairShare, "round-robin": RoundRobin}


def step_policy_names() -> list[str]:
    """Return the names that `make_step_policy` knows: the built-in ones and those of plug-ins."""
    plugged = {point.name for point in entry_points(group="deepseek.step_policies")}
    return sorted(plugged | set(_BUILT_IN))


def make_step_policy(name: str, shares: Mapping[str, float]) -> StepPolicy:
    """Return the policy of this name; raises `ConfigurationError` listing the known ones."""
    known = {point.name: point for point in entry_points(group="deepseek.step_policies")}
    if name in _BUILT_IN:
        return _BUILT_IN[name](shares)
    if name in known:
        cls: type[StepPolicy] = known[name].load()
        return cls(shares)
    names = ", ".join(step_policy_names())
    raise ConfigurationError(
        f"pools: step_policy {name!r} is unknown; known: {names}", param="step_policy"
    )
