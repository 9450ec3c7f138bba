"""Which model is asked for next: two forecasts, and as much of each as it has deserved.

*Popularity* knows how often each model is asked for. Where requests come independently of one
another nothing else can be known, and times are noise. *Timing* knows each model's gaps
(`next_use`), and so bursts and schedules. Neither is best on every trace, so their shares are mixed
by how well each foretold the requests so far: the fixed-share forecaster of Herbster and Warmuth
("Tracking the best expert", Machine Learning 32, 1998).
"""

import math
from collections.abc import Iterable, Mapping

from deepseek.scheduling.preloading.next_use import ArrivalHistogram

_HORIZON_S = 10.0
_REMEMBERED_REQUESTS = 500.0
"""Requests, of all models together, after which one counts for 1/e."""
_IMAGINED_REQUESTS = 0.5
_SWITCHING = 0.01
"""Part of the weight that is levelled at every request, so that neither forecast is lost."""
_UNFORESEEN = 0.02
"""Part of the timing's shares that goes to all models alike: what it calls impossible happens."""


class Popularity:
    """Each model's share of the requests, old ones forgotten."""

    def __init__(self, *, remembered: float = _REMEMBERED_REQUESTS) -> None:
        """`remembered`: requests after which one counts for 1/e."""
        self._growth = math.exp(1.0 / remembered)
        self._next = 1.0
        """What the next request counts: they grow instead of the old ones shrinking."""
        self._counts: dict[str, float] = {}

    def observe(self, model: str) -> None:
        """Count a request."""
        self._counts[model] = self._counts.get(model, 0.0) + self._next
        self._next *= self._growth
        if self._next > 1e100:
            self._counts = {name: count / self._next for name, count in self._counts.items()}
            self._next = 1.0

    def shares(self, models: Iterable[str]) -> dict[str, float]:
        """Return the shares of these models; they sum to 1."""
        return _shares(
            {m: self._counts.get(m, 0.0) + _IMAGINED_REQUESTS * self._next for m in models}
        )


class Timing:
    """Each model's share of the next moments' requests, from the time since its last one."""

    def __init__(self, *, horizon_s: float = _HORIZON_S) -> None:
        """`horizon_s`: how far it looks ahead."""
        self._horizon_s = horizon_s
        self._histograms: dict[str, ArrivalHistogram] = {}
        self._last_s: dict[str, float] = {}

    def observe(self, model: str, *, now_s: float) -> None:
        """Count the gap that has ended."""
        if model in self._last_s:
            self._histograms[model].add(now_s - self._last_s[model])
        self._know(model, now_s)
        self._last_s[model] = now_s

    def probability(self, model: str, *, now_s: float) -> float:
        """Return how likely this model is asked for within the horizon.

        One that never was is taken to have been when it was first looked at.
        """
        self._know(model, now_s)
        return self._histograms[model].probability(
            elapsed_s=now_s - self._last_s[model], horizon_s=self._horizon_s
        )

    def shares(self, models: Iterable[str], *, now_s: float) -> dict[str, float]:
        """Return the shares of these models; they sum to 1.

        Likely is not yet soon: what comes with 99 % within the horizon comes far earlier than what
        comes with 90 %. So the rates are compared that such probabilities follow from.
        """
        rates = {m: -math.log1p(-min(self.probability(m, now_s=now_s), 1 - 1e-9)) for m in models}
        even = 1.0 / max(1, len(rates))
        return {
            model: (1.0 - _UNFORESEEN) * share + _UNFORESEEN * even
            for model, share in _shares(rates).items()
        }

    def _know(self, model: str, now_s: float) -> None:
        if model not in self._histograms:
            self._histograms[model] = ArrivalHistogram()
            self._last_s[model] = now_s


class Demand:
    """The mixture of both."""

    def __init__(self) -> None:
        self._popularity = Popularity()
        self._timing = Timing()
        self._trust = 0.5
        """Weight of the timing, from 0 to 1."""
        self._known: dict[str, None] = {}
        """Models in the order in which they became known."""
        self._told: tuple[float, dict[str, float]] | None = None
        """The last answer: a policy asks for all models at one time."""

    @property
    def trust(self) -> float:
        """How much the timing counts, from 0 to 1; the rest is popularity's."""
        return self._trust

    def probability(self, model: str, *, now_s: float) -> float:
        """Return the timing's probability that this model is asked for within the horizon."""
        return self._timing.probability(model, now_s=now_s)

    def meet(self, models: Iterable[str]) -> None:
        """Learn which models there are: the share of one depends on all of them."""
        for model in models:
            self._know(model)

    def observe(self, model: str, *, now_s: float) -> None:
        """Judge both forecasts by this request, and learn from it."""
        self._know(model)
        timely = self._timing.shares(self._known, now_s=now_s)[model]
        popular = self._popularity.shares(self._known)[model]
        weight = self._trust * timely / (self._trust * timely + (1 - self._trust) * popular)
        self._trust = (1 - _SWITCHING) * weight + _SWITCHING / 2
        self._popularity.observe(model)
        self._timing.observe(model, now_s=now_s)
        self._told = None

    def share(self, model: str, *, now_s: float) -> float:
        """Return how likely the next request is for this model."""
        self._know(model)
        if self._told is None or self._told[0] != now_s:
            self._told = now_s, self._mixed(now_s)
        return self._told[1][model]

    def _know(self, model: str) -> None:
        if model not in self._known:
            self._known[model] = None
            self._told = None

    def _mixed(self, now_s: float) -> dict[str, float]:
        timely = self._timing.shares(self._known, now_s=now_s)
        popular = self._popularity.shares(self._known)
        return {
            model: self._trust * timely[model] + (1 - self._trust) * popular[model]
            for model in self._known
        }


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    if total <= 0:
        return dict.fromkeys(weights, 1.0 / max(1, len(weights)))
    return {model: weight / total for model, weight in weights.items()}
