"""Other ways to value a model, for the ablation: what was measured and not taken."""

from collections.abc import Iterable

from deepseek.scheduling.preloading.base import ModelState, Tier
from deepseek.scheduling.preloading.demand import Demand, Popularity, Timing
from deepseek.scheduling.preloading.preloader import RankedPreloader
from deepseek.scheduling.preloading.rankings import Foreseen, GreedyDual


class BySize:
    """The forecast in another relation to the size."""

    def __init__(self, power: float) -> None:
        """`power`: 0 is by the byte as `Foreseen`, 1 the probability alone, 2 times the size."""
        self._demand = Demand()
        self._power = power

    def meet(self, models: Iterable[str]) -> None:
        """Tell the forecast."""
        self._demand.meet(models)

    def observe(self, model: str, *, now_s: float) -> None:
        """Tell the forecast."""
        self._demand.observe(model, now_s=now_s)

    def worth(self, model: ModelState, tier: Tier, *, now_s: float) -> float:
        """Return share * size ** (power - 1)."""
        size = max(1, model.bytes_in(tier))
        return self._demand.share(model.name, now_s=now_s) * size ** (self._power - 1)

    def note_evicted(self, worth: float, tier: Tier) -> None:
        """Ignore it."""


class WithClock(Foreseen):
    """GDSF to the letter, with the forecast as the frequency: a clock is added."""

    def __init__(self) -> None:
        super().__init__(Demand())
        self._clock = dict.fromkeys(Tier, 0.0)
        self._clock_at_use: dict[str, dict[Tier, float]] = {}

    def observe(self, model: str, *, now_s: float) -> None:
        """Take the clocks."""
        super().observe(model, now_s=now_s)
        self._clock_at_use[model] = dict(self._clock)

    def worth(self, model: ModelState, tier: Tier, *, now_s: float) -> float:
        """Return the priority."""
        clock = self._clock_at_use.get(model.name, {}).get(tier, 0.0)
        return clock + super().worth(model, tier, now_s=now_s)

    def note_evicted(self, worth: float, tier: Tier) -> None:
        """Move the clock on."""
        self._clock[tier] = max(self._clock[tier], worth)


class OneForecast:
    """Only one of the two forecasts that `Demand` mixes."""

    def __init__(self, *, uses_times: bool) -> None:
        """`uses_times`: the histograms; else the popularity."""
        self._uses_times = uses_times
        self._popularity = Popularity()
        self._timing = Timing()
        self._known: dict[str, None] = {}

    def meet(self, models: Iterable[str]) -> None:
        """Remember them."""
        self._known |= dict.fromkeys(models)

    def observe(self, model: str, *, now_s: float) -> None:
        """Tell both."""
        self._known[model] = None
        self._popularity.observe(model)
        self._timing.observe(model, now_s=now_s)

    def worth(self, model: ModelState, tier: Tier, *, now_s: float) -> float:
        """Return the share by the byte."""
        self._known[model.name] = None
        if self._uses_times:
            share = self._timing.shares(self._known, now_s=now_s)[model.name]
        else:
            share = self._popularity.shares(self._known)[model.name]
        return share / max(1, model.bytes_in(tier))

    def note_evicted(self, worth: float, tier: Tier) -> None:
        """Ignore it."""


def _alone(ranking: BySize | Foreseen | OneForecast, *, margin: float = 1.5) -> RankedPreloader:
    return RankedPreloader(eviction=ranking, preloading=ranking, margin=margin)


VARIANTS = {
    "as it is": lambda: _alone(Foreseen(Demand())),
    "no preloading": lambda: RankedPreloader(eviction=Foreseen(Demand()), preloading=None),
    "popularity alone": lambda: _alone(OneForecast(uses_times=False)),
    "histograms alone": lambda: _alone(OneForecast(uses_times=True)),
    "probability, not by the byte": lambda: _alone(BySize(1.0)),
    "probability * size": lambda: _alone(BySize(2.0)),
    "probability by the root of the bytes": lambda: _alone(BySize(0.5)),
    "GDSF clock on the forecast": lambda: _alone(WithClock()),
    "GDSF for evictions on demand": lambda: RankedPreloader(
        eviction=GreedyDual(), preloading=Foreseen(Demand())
    ),
    "margin 1.05": lambda: _alone(Foreseen(Demand()), margin=1.05),
    "margin 1.25": lambda: _alone(Foreseen(Demand()), margin=1.25),
    "margin 2": lambda: _alone(Foreseen(Demand()), margin=2.0),
}
