"""The batching policies by name; entry-point group `deepseek.batching_policies`."""

from collections.abc import Callable

from deepseek.core.plugins import PluginRegistry
from deepseek.core.qos import QoS
from deepseek.scheduling.batching.base import BatchingPolicy, StepLimits

PolicyMaker = Callable[[QoS, str, StepLimits], BatchingPolicy]
"""Makes the policy that the QoS of a model names, for steps within the limits."""

_REGISTRY = PluginRegistry(
    group="deepseek.batching_policies",
    setting="qos.policy",
    built_in={
        "aimd": "deepseek.scheduling.batching.aimd:AimdPolicy",
        "fixed": "deepseek.scheduling.batching.fixed:FixedPolicy",
        "greedy": "deepseek.scheduling.batching.greedy:GreedyPolicy",
        "slack": "deepseek.scheduling.batching.slack:SlackPolicy",
        "step-up": "deepseek.scheduling.batching.step_up:StepUpPolicy",
    },
)


def batching_policy_names() -> list[str]:
    """Return the names that `make_batching_policy` knows."""
    return _REGISTRY.names()


def check_batching_policy(name: str) -> None:
    """Raise `ConfigurationError` for a name that `make_batching_policy` does not know."""
    _REGISTRY.find(name)


def make_batching_policy(name: str, model: str, qos: QoS, limits: StepLimits) -> BatchingPolicy:
    """Return the policy of this name; raises `ConfigurationError` for an unknown one."""
    policy: BatchingPolicy = _REGISTRY.find(name)(model, qos, limits)
    return policy


def policy_named_by(qos: QoS, model: str, limits: StepLimits) -> BatchingPolicy:
    """Return the policy that a model's QoS names; the plain `PolicyMaker`."""
    return make_batching_policy(qos.policy, model, qos, limits)
