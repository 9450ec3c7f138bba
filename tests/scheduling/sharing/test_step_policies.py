"""What every step policy promises, by name."""

import pytest

from deepseek.core.errors import ConfigurationError
from deepseek.core.qos import Priority, QoS
from deepseek.scheduling.sharing.base import StepPolicy
from deepseek.scheduling.sharing.registry import make_step_policy, step_policy_names
from tests.scheduling.sharing.device import Device, constant

MODELS = {
    "a": QoS(priority=Priority.CRITICAL, reserved_share=0.5),
    "b": QoS(),
    "c": QoS(priority=Priority.LOW),
}


@pytest.fixture(params=step_policy_names())
def policy(request: pytest.FixtureRequest) -> StepPolicy:
    return make_step_policy(request.param, MODELS, max_step_s=0.01)


def test_only_a_model_with_work_is_picked(policy: StepPolicy) -> None:
    for names in ("a", "b", "ab", "bc", "c", "abc", "ac") * 3:
        chosen = policy.pick(list(names))
        assert chosen in names
        policy.charge(chosen, 0.01)


def test_everybody_with_work_is_served(policy: StepPolicy) -> None:
    device = Device(policy, constant({"a": 0.03, "b": 0.01, "c": 0.01}))
    device.run(list(MODELS), for_s=2.0)
    assert {model for _, model, _ in device.steps} == set(MODELS)


def test_a_step_may_take_time(policy: StepPolicy) -> None:
    assert all(policy.max_step_s(model) > 0 for model in MODELS)


def test_a_step_without_cost_is_taken(policy: StepPolicy) -> None:
    ready = list(MODELS)
    for _ in range(10):
        policy.charge(policy.pick(ready), 0.0)


def test_models_come_and_go(policy: StepPolicy) -> None:
    device = Device(policy, constant({"a": 0.01, "b": 0.01, "c": 0.01, "d": 0.01}))
    device.run(list(MODELS), for_s=0.5)
    policy.reconfigure({"b": QoS(), "d": QoS(weight=3.0)})
    start_s = device.now_s
    device.run(["b", "d"], for_s=0.5)
    assert {m for at_s, m, _ in device.steps if at_s >= start_s} == {"b", "d"}


def test_an_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="fair-share, round-robin"):
        make_step_policy("lottery", {}, max_step_s=0.01)


def test_round_robin_takes_turns_among_those_with_work() -> None:
    policy = make_step_policy("round-robin", MODELS, max_step_s=0.01)
    ready = ["a", "c"]
    assert [policy.pick(ready) for _ in range(4)] == ["a", "c", "a", "c"]
