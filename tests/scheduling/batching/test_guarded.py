"""A plug-in policy that fails costs its model a decision, not a step."""

from dataclasses import replace

import pytest

from deepseek.core.load import DeviceLoad, ModelLoad
from deepseek.core.qos import QoS
from deepseek.scheduling.batching.base import BatchingPolicy, Demand, StepLimits, StepPlan
from deepseek.scheduling.batching.greedy import GreedyPolicy
from deepseek.scheduling.batching.guarded import FALLBACK, GuardedPolicy
from deepseek.scheduling.batching.registry import policy_named_by
from deepseek.scheduling.batching.slack import SlackPolicy
from tests.scheduling.batching.queue import LIMITS, Queued, Server

LOAD = ModelLoad(
    model="m",
    num_waiting=1,
    num_running=0,
    kv_tokens_used=0,
    kv_tokens_cached=0,
    kv_tokens_capacity=100,
)
PLUGIN_QOS = QoS(policy="plug-in")


class Failing(GreedyPolicy):
    """Raises in the method of the name."""

    method = ""

    def __getattribute__(self, name: str) -> object:
        if name == Failing.method:
            raise ArithmeticError(name)
        return super().__getattribute__(name)


class Greedless(GreedyPolicy):
    """Plans nothing."""

    def plan(self, demand: Demand, *, max_step_s: float) -> StepPlan:
        return replace(super().plan(demand, max_step_s=max_step_s), max_sequences=0)


class Boundless(GreedyPolicy):
    """Plans more than a step may hold."""

    def plan(self, demand: Demand, *, max_step_s: float) -> StepPlan:
        return replace(super().plan(demand, max_step_s=max_step_s), max_tokens=10**6)


def _make(kind: type[GreedyPolicy]) -> GuardedPolicy:
    def make(qos: QoS, model: str, limits: StepLimits) -> BatchingPolicy:
        if qos.policy == "plug-in":
            return kind(model, qos, limits)
        return policy_named_by(qos, model, limits)

    return GuardedPolicy(PLUGIN_QOS, "m", LIMITS, make=make)


def _serves(policy: BatchingPolicy) -> None:
    server = Server(policy)
    server.serve([Queued(id=number, arrived_s=0.01 * number) for number in range(6)])
    assert len(server.finished) == 6


@pytest.mark.parametrize("method", ["ready_at", "plan", "observe", "adjust", "reconfigure"])
def test_a_method_that_raises_hands_over_to_the_built_in_policy(
    method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    policy = _make(Failing)
    monkeypatch.setattr(Failing, "method", method)
    policy.reconfigure(replace(PLUGIN_QOS, max_batch_size=4))
    _serves(policy)
    (decision,) = [
        d for d in policy.adjust(LOAD, DeviceLoad(), now_s=2.0) if d.action == "replace-policy"
    ]
    assert "ArithmeticError" in decision.reason
    assert "plug-in" in decision.reason
    assert "plug-in" in caplog.text
    told_again = policy.adjust(LOAD, DeviceLoad(), now_s=3.0)
    assert all(d.action != "replace-policy" for d in told_again)


@pytest.mark.parametrize("kind", [Greedless, Boundless])
def test_a_plan_beyond_its_promise_counts_as_a_failure(kind: type[GreedyPolicy]) -> None:
    policy = _make(kind)
    _serves(policy)
    assert any(d.action == "replace-policy" for d in policy.adjust(LOAD, DeviceLoad(), now_s=2.0))


def test_a_policy_that_cannot_be_made_is_replaced() -> None:
    class Unmade(GreedyPolicy):
        def __init__(self, model: str, qos: QoS, limits: StepLimits) -> None:
            raise OSError("no licence")

    _serves(_make(Unmade))


def test_one_that_keeps_its_promises_is_left_alone() -> None:
    policy = _make(GreedyPolicy)
    _serves(policy)
    assert policy.adjust(LOAD, DeviceLoad(), now_s=2.0) == []


def test_what_the_built_in_policy_raises_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **named: object) -> float:
        raise ArithmeticError

    policy = GuardedPolicy(QoS(policy=FALLBACK), "m", LIMITS, make=policy_named_by)
    monkeypatch.setattr(SlackPolicy, "ready_at", fail)
    with pytest.raises(ArithmeticError):
        policy.ready_at(Demand(now_s=0.0, waiting=[Queued(id=1)], running=[]))
