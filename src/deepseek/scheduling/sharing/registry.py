"""The step policies by name; entry-point group `deepseek.step_policies`."""

from collections.abc import Mapping

from deepseek.core.plugins import PluginRegistry
from deepseek.core.qos import QoS
from deepseek.scheduling.sharing.base import StepPolicy

_REGISTRY = PluginRegistry(
    group="deepseek.step_policies",
    setting="pools.step_policy",
    built_in={
        "fair-share": "deepseek.scheduling.sharing.fair_share:FairShare",
        "round-robin": "deepseek.scheduling.sharing.round_robin:RoundRobin",
    },
)


def step_policy_names() -> list[str]:
    """Return the names that `make_step_policy` knows: the built-in ones and those of plug-ins."""
    return _REGISTRY.names()


def make_step_policy(name: str, models: Mapping[str, QoS], *, max_step_s: float) -> StepPolicy:
    """Return the policy of this name; raises `ConfigurationError` for an unknown one."""
    policy: StepPolicy = _REGISTRY.find(name)(models, max_step_s=max_step_s)
    return policy
