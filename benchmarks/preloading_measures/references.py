"""Policies that know what no policy can: how far the others are from the possible."""

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Sequence

from deepseek.scheduling.preloading.base import ModelState, Tier
from deepseek.scheduling.preloading.preloader import RankedPreloader
from deepseek.scheduling.preloading.simulation import ModelArrival

_SOONEST_S = 1e-3


class KnownPopularity:
    """A ranking that knows beforehand how many requests each model will get, and no times.

    Where requests are dealt independently there is nothing else to know: what it reaches is, for
    all practical purposes, the most that a policy can which does not see the future.
    """

    def __init__(self, arrivals: Sequence[ModelArrival]) -> None:
        """Count the future."""
        self._counts = Counter(arrival.model for arrival in arrivals)

    def meet(self, models: Iterable[str]) -> None:
        """Ignore it: each is judged by itself."""

    def observe(self, model: str, *, now_s: float) -> None:
        """Learn nothing."""

    def worth(self, model: ModelState, tier: Tier, *, now_s: float) -> float:
        """Return the requests by the byte."""
        return self._counts[model.name] / max(1, model.bytes_in(tier))

    def note_evicted(self, worth: float, tier: Tier) -> None:
        """Ignore it."""


class Clairvoyant:
    """A ranking that knows when each model is asked for next: Belady's rule, also for preloads.

    With models of one size it keeps those that are asked for soonest; with several sizes it
    weighs the time by the bytes, which is no longer optimal. No policy should be far above it,
    but it is not a proven bound: one load at a time makes the best order a scheduling problem.
    """

    def __init__(self, arrivals: Sequence[ModelArrival]) -> None:
        """Read the future."""
        self._times_s: dict[str, list[float]] = {}
        for arrival in sorted(arrivals, key=lambda a: a.at_s):
            self._times_s.setdefault(arrival.model, []).append(arrival.at_s)

    def meet(self, models: Iterable[str]) -> None:
        """Ignore it: each is judged by itself."""

    def observe(self, model: str, *, now_s: float) -> None:
        """Learn nothing."""

    def worth(self, model: ModelState, tier: Tier, *, now_s: float) -> float:
        """Return how soon it is asked for, by the byte."""
        times_s = self._times_s.get(model.name, [])
        index = bisect.bisect_right(times_s, now_s)
        next_s = times_s[index] if index < len(times_s) else math.inf
        return 1.0 / max(_SOONEST_S, next_s - now_s) / max(1, model.bytes_in(tier))

    def note_evicted(self, worth: float, tier: Tier) -> None:
        """Ignore it."""


def known_popularity(arrivals: Sequence[ModelArrival]) -> RankedPreloader:
    """Return the policy that keeps the most popular models in place."""
    ranking = KnownPopularity(arrivals)
    return RankedPreloader(eviction=ranking, preloading=ranking, margin=1.0)


def clairvoyant(arrivals: Sequence[ModelArrival]) -> RankedPreloader:
    """Return the policy that sees the future."""
    ranking = Clairvoyant(arrivals)
    return RankedPreloader(eviction=ranking, preloading=ranking, margin=1.0)
