"""The batching policies by name; entry-point group `deepseek.batching_policies`."""

from deepseek.core.qos import QoS
from deepseek.scheduling.batching.base import BatchingPolicy, StepLimits
from deepseek.scheduling.plugins import PolicyRegistry

_REGISTRY = PolicyRegistry(
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


def make_batching_policy(name: str, model: str, qos: QoS, limits: StepLimits) -> BatchingPolicy:
    """Return the policy of this name; raises `ConfigurationError` for an unknown one."""
    policy: BatchingPolicy = _REGISTRY.find(name)(model, qos, limits)
    return policy
