"""The policies of the benchmark by name: those of a deployment, the references, the variants."""

from collections.abc import Sequence

from deepseek.scheduling.preloading.base import PreloadingPolicy
from deepseek.scheduling.preloading.registry import make_preloading_policy
from deepseek.scheduling.preloading.simulation import ModelArrival
from preloading_measures.references import clairvoyant, known_popularity
from preloading_measures.variants import VARIANTS

OURS, LRU = "foreseen", "lru"
POPULARITY, ORACLE = "popularity known", "oracle"


def made(policy: str, arrivals: Sequence[ModelArrival]) -> PreloadingPolicy:
    """Return a new policy; the references are told what will arrive."""
    if policy == POPULARITY:
        return known_popularity(arrivals)
    if policy == ORACLE:
        return clairvoyant(arrivals)
    if policy in VARIANTS:
        return VARIANTS[policy]()
    return make_preloading_policy(policy)
