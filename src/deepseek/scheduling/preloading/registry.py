"""The preloading policies by name; entry-point group `deepseek.preloading_policies`."""

from deepseek.core.plugins import PluginRegistry
from deepseek.scheduling.preloading.base import PreloadingPolicy

_REGISTRY = PluginRegistry(
    group="deepseek.preloading_policies",
    setting="pools.preloading",
    built_in={
        "foreseen": "deepseek.scheduling.preloading.policies:ForeseenUse",
        "gdsf": "deepseek.scheduling.preloading.policies:GreedyDualOnDemand",
        "gdsf-foreseen": "deepseek.scheduling.preloading.policies:GreedyDualForeseen",
        "lru": "deepseek.scheduling.preloading.policies:LeastRecentlyUsed",
        "lru-foreseen": "deepseek.scheduling.preloading.policies:LeastRecentlyUsedForeseen",
    },
)


def preloading_policy_names() -> list[str]:
    """Return the names that `make_preloading_policy` knows, built-in ones and plug-ins."""
    return _REGISTRY.names()


def make_preloading_policy(name: str) -> PreloadingPolicy:
    """Return a new policy of this name; raises `ConfigurationError` for an unknown one."""
    policy: PreloadingPolicy = _REGISTRY.find(name)()
    return policy
