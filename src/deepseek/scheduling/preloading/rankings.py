"""What a copy in a tier is worth, by the byte: what is worth least is given up first."""

import math
from collections.abc import Iterable
from typing import Protocol

from deepseek.scheduling.preloading.base import ModelState, Tier
from deepseek.scheduling.preloading.demand import Demand

_BEHIND_DEVICE = 0.01
"""What a host copy is worth while the device has the model too: it is used once that is evicted.
Little enough that the two tiers together hold as many models as they can."""


class Ranking(Protocol):
    """Orders the copies in one tier; its numbers mean nothing beside another ranking's."""

    def meet(self, models: Iterable[str]) -> None:
        """Learn which models there are, before any of them is judged: all may depend on all."""
        ...

    def observe(self, model: str, *, now_s: float) -> None:
        """Learn that a request for this model has arrived."""
        ...

    def worth(self, model: ModelState, tier: Tier, *, now_s: float) -> float:
        """Return what a byte of this model in this tier is worth, whether it is there or not."""
        ...

    def note_evicted(self, worth: float, tier: Tier) -> None:
        """Learn that a copy of this worth makes room for a load on demand; may be told again."""
        ...


class Recency:
    """Least recently used: the time of the last request."""

    def __init__(self) -> None:
        self._last_s: dict[str, float] = {}

    def meet(self, models: Iterable[str]) -> None:
        """Ignore it: each is judged by itself."""

    def observe(self, model: str, *, now_s: float) -> None:
        """Remember the time."""
        self._last_s[model] = now_s

    def worth(self, model: ModelState, tier: Tier, *, now_s: float) -> float:
        """Return the time of the last request."""
        return self._last_s.get(model.name, -math.inf)

    def note_evicted(self, worth: float, tier: Tier) -> None:
        """Ignore it."""


class GreedyDual:
    """Greedy-Dual-Size-Frequency: clock + frequency * cost / size.

    Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency caching policy"
    (HP Labs HPL-98-69R1, 1998); for functions that are kept alive, Fuerst and Sharma, "FaasCache"
    (ASPLOS 2021). The clock of a tier is the priority of what was evicted last, and a model takes
    it over at its last request: what is not asked for any more is overtaken in the end, however
    often it was.
    """

    def __init__(self) -> None:
        self._clock = dict.fromkeys(Tier, 0.0)
        self._clock_at_use: dict[str, dict[Tier, float]] = {}
        self._num_uses: dict[str, int] = {}

    def meet(self, models: Iterable[str]) -> None:
        """Ignore it: each is judged by itself."""

    def observe(self, model: str, *, now_s: float) -> None:
        """Count a use and take the clocks."""
        self._num_uses[model] = self._num_uses.get(model, 0) + 1
        self._clock_at_use[model] = dict(self._clock)

    def worth(self, model: ModelState, tier: Tier, *, now_s: float) -> float:
        """Return the priority."""
        clock = self._clock_at_use.get(model.name, {}).get(tier, 0.0)
        frequency = self._num_uses.get(model.name, 0)
        cost_s = model.host_s if tier is Tier.HOST else model.load_s(Tier.DEVICE)
        return clock + frequency * cost_s / max(1, model.bytes_in(tier))

    def note_evicted(self, worth: float, tier: Tier) -> None:
        """Move the clock on."""
        self._clock[tier] = max(self._clock[tier], worth)


class Foreseen:
    """How likely the next request is for a model, by the byte.

    GDSF's formula with the forecast in place of the frequency, every miss at the same cost, and no
    clock: a forecast ages by itself. docs/preloading.md has what the alternatives measured.
    """

    def __init__(self, demand: Demand) -> None:
        """`demand`: the forecast; told of every request through `observe`."""
        self._demand = demand

    def meet(self, models: Iterable[str]) -> None:
        """Tell the forecast."""
        self._demand.meet(models)

    def observe(self, model: str, *, now_s: float) -> None:
        """Tell the forecast."""
        self._demand.observe(model, now_s=now_s)

    def worth(self, model: ModelState, tier: Tier, *, now_s: float) -> float:
        """Return the probability by the byte."""
        share = self._demand.share(model.name, now_s=now_s)
        if tier is Tier.HOST and Tier.DEVICE in model.held:
            share *= _BEHIND_DEVICE
        return share / max(1, model.bytes_in(tier))

    def note_evicted(self, worth: float, tier: Tier) -> None:
        """Ignore it."""
