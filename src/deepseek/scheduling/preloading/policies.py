"""The policies that a deployment names."""

from deepseek.scheduling.preloading.demand import Demand
from deepseek.scheduling.preloading.preloader import RankedPreloader
from deepseek.scheduling.preloading.rankings import Foreseen, GreedyDual, Recency


class ForeseenUse(RankedPreloader):
    """Preloads and evicts by how likely the next request is for a model, by the byte."""

    def __init__(self) -> None:
        foreseen = Foreseen(Demand())
        super().__init__(eviction=foreseen, preloading=foreseen)


class LeastRecentlyUsed(RankedPreloader):
    """Loads on demand, and evicts what was used least recently: a baseline."""

    def __init__(self) -> None:
        super().__init__(eviction=Recency(), preloading=None)


class LeastRecentlyUsedForeseen(RankedPreloader):
    """The same, and preloads what is likely next: a baseline that tells the two parts apart."""

    def __init__(self) -> None:
        super().__init__(eviction=Recency(), preloading=Foreseen(Demand()))


class GreedyDualOnDemand(RankedPreloader):
    """Loads on demand, and evicts by Greedy-Dual-Size-Frequency."""

    def __init__(self) -> None:
        super().__init__(eviction=GreedyDual(), preloading=None)


class GreedyDualForeseen(RankedPreloader):
    """The same, and preloads what is likely next."""

    def __init__(self) -> None:
        super().__init__(eviction=GreedyDual(), preloading=Foreseen(Demand()))
