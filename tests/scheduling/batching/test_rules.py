"""The medium and slow loops: which signal leads to which decision, and that none is needed."""

import math
from dataclasses import replace
from typing import Any

import pytest

from deepseek.core.load import DeviceLoad, ModelLoad
from deepseek.core.qos import QoS
from deepseek.scheduling.batching.aimd import AimdPolicy
from deepseek.scheduling.batching.base import Demand, StepShape
from deepseek.scheduling.batching.fixed import FixedPolicy
from deepseek.scheduling.batching.slack import SlackPolicy
from deepseek.scheduling.batching.step_up import HIGH_CAP, IN_A_ROW, LOW_CAP, StepUpPolicy
from tests.scheduling.batching.queue import LIMITS, Queued

CALM = ModelLoad(
    model="m",
    num_waiting=0,
    num_running=8,
    kv_tokens_used=0,
    kv_tokens_cached=0,
    kv_tokens_capacity=100,
    arrival_rate=8.0,
)
QOS = QoS(ttft_s=1.0, itl_s=0.1, max_wait_s=0.2)


def sequences(policy: Any) -> int:
    demand = Demand(now_s=0.0, waiting=[Queued(1)], running=())
    return int(policy.plan(demand, max_step_s=math.inf).max_sequences)


@pytest.mark.parametrize(
    ("load", "device", "action", "signal"),
    [
        ({"error_rate": 0.5}, {}, "halve-batch-cap", "error_rate"),
        ({"kv_tokens_used": 95}, {}, "cap-admission", "kv_use"),
        ({}, {"memory_used_bytes": 99, "memory_total_bytes": 100}, "cap-admission", "memory_use"),
        ({}, {"is_throttled": True}, "expect-slower-steps", "is_throttled"),
        ({"step_time_s": 0.5}, {}, "lower-batch-cap", "step_time_s"),
        ({}, {"temperature_c": 95.0}, "raise-margin", "temperature_c"),
        ({}, {"power_w": 700.0, "power_limit_w": 700.0}, "raise-margin", "power_ratio"),
        ({}, {"utilization": 0.01}, "start-at-once", "utilization"),
        ({"num_waiting": 3, "oldest_wait_s": 0.8}, {}, "start-at-once", "oldest_wait_s"),
        ({"arrival_rate": 0.01}, {}, "start-at-once", "arrival_rate"),
    ],
)
def test_a_signal_leads_to_its_decision_and_silence_to_none(
    load: dict[str, Any], device: dict[str, Any], action: str, signal: str
) -> None:
    policy = SlackPolicy("m", QOS, LIMITS)
    assert policy.adjust(CALM, DeviceLoad(), now_s=0.0) == []
    decisions = policy.adjust(replace(CALM, **load), DeviceLoad(**device), now_s=0.5)
    found = {decision.action: decision for decision in decisions}
    assert action in found
    assert signal in found[action].signals


def test_a_clock_that_falls_is_expected_to_slow_steps_before_it_has() -> None:
    policy = SlackPolicy("m", QOS, LIMITS)
    fast = DeviceLoad(clock_mhz=2000.0, clock_max_mhz=2000.0)
    assert policy.adjust(CALM, fast, now_s=0.0) == []
    slow = DeviceLoad(clock_mhz=1250.0, clock_max_mhz=2000.0)
    (decision,) = policy.adjust(CALM, slow, now_s=0.5)
    assert decision.action == "expect-slower-steps"


def test_missed_deadlines_widen_the_reserve_and_time_narrows_it_again() -> None:
    policy = SlackPolicy("m", QOS, LIMITS)
    late = replace(CALM, deadline_slack_s=-0.5, wait_p99_s=2.0)
    told = [d.action for n in range(8) for d in policy.adjust(late, DeviceLoad(), now_s=n / 2)]
    assert "raise-margin" in told
    calm = replace(CALM, deadline_slack_s=0.9, wait_p99_s=0.1)
    told = [d.action for n in range(60) for d in policy.adjust(calm, DeviceLoad(), now_s=4 + n / 2)]
    assert "lower-margin" in told


def test_a_step_without_memory_halves_the_batch_at_once_and_says_so() -> None:
    policy = SlackPolicy("m", QOS, LIMITS)
    nothing = StepShape(num_prefill_tokens=0, num_decoding=0, num_context_tokens=0, num_sequences=0)
    policy.observe(nothing, seconds=0.01, is_out_of_memory=True)
    assert sequences(policy) == LIMITS.max_sequences // 2
    (decision,) = policy.adjust(CALM, DeviceLoad(), now_s=0.0)
    assert decision.action == "halve-batch-cap"


def test_a_growing_queue_raises_a_batch_that_was_lowered() -> None:
    policy = SlackPolicy("m", QOS, LIMITS)
    for number in range(4):
        policy.adjust(replace(CALM, step_time_s=0.5), DeviceLoad(), now_s=number / 2)
    low = sequences(policy)
    assert low < 8
    for number in range(6):
        load = replace(CALM, step_time_s=0.05, num_waiting=10 * (number + 1), batch_occupancy=0.5)
        policy.adjust(load, DeviceLoad(), now_s=2 + number / 2)
    assert sequences(policy) > low


def test_memory_bandwidth_at_its_limit_keeps_the_batch_where_it_is() -> None:
    caps = []
    for bandwidth in (None, 0.99):
        policy = SlackPolicy("m", QOS, LIMITS)
        policy.adjust(replace(CALM, step_time_s=0.5), DeviceLoad(), now_s=0.0)
        load = replace(CALM, step_time_s=0.05, num_waiting=50)
        policy.adjust(load, DeviceLoad(memory_bandwidth_utilization=bandwidth), now_s=0.5)
        caps.append(sequences(policy))
    assert caps[0] > caps[1]


def test_more_work_than_the_device_does_is_overload_and_asks_for_a_replica() -> None:
    policy = SlackPolicy("m", QOS, LIMITS)
    load = replace(CALM, num_waiting=100, arrival_rate=20.0, service_rate=10.0, batch_occupancy=1.0)
    told = [d.action for n in range(80) for d in policy.adjust(load, DeviceLoad(), now_s=n / 2)]
    assert "change-mode" in told
    assert told.count("scale-out") == 1


def test_five_idle_minutes_say_that_a_replica_could_go() -> None:
    policy = SlackPolicy("m", QOS, LIMITS)
    load = replace(CALM, num_running=0, arrival_rate=0.0)
    device = DeviceLoad(loop_utilization=0.0)
    told = [d.action for n in range(700) for d in policy.adjust(load, device, now_s=n / 2)]
    assert told.count("scale-in") == 1


def test_step_up_doubles_after_five_long_waits_in_a_row_and_goes_back() -> None:
    policy = StepUpPolicy("m", QOS, LIMITS)
    long, short = replace(CALM, oldest_wait_s=0.3), replace(CALM, oldest_wait_s=0.1)
    for load in [long] * (IN_A_ROW - 1) + [short] + [long] * (IN_A_ROW - 1):
        assert policy.adjust(load, DeviceLoad(), now_s=0.0) == []
    assert sequences(policy) == LOW_CAP
    (decision,) = policy.adjust(long, DeviceLoad(), now_s=0.0)
    assert decision.action == "raise-batch-cap"
    assert sequences(policy) == HIGH_CAP
    told = [policy.adjust(short, DeviceLoad(), now_s=0.0) for _ in range(IN_A_ROW)]
    assert told[-1][0].action == "lower-batch-cap"
    assert sequences(policy) == LOW_CAP


def test_fixed_waits_for_its_batch_or_its_longest_wait() -> None:
    policy = FixedPolicy("m", QoS(min_batch_size=3, max_batch_size=3, max_wait_s=0.2), LIMITS)
    two = [Queued(1, 0.0), Queued(2, 0.1)]
    assert policy.ready_at(Demand(now_s=0.1, waiting=two, running=())) == pytest.approx(0.2)
    three = Demand(now_s=0.1, waiting=[*two, Queued(3, 0.1)], running=())
    assert policy.ready_at(three) == 0.1
    beside = Demand(now_s=0.1, waiting=two, running=[Queued(9, 0.0)])
    assert policy.plan(beside, max_step_s=math.inf).order == ()


def test_aimd_grows_by_steps_and_shrinks_by_a_part() -> None:
    policy = AimdPolicy("m", QOS, LIMITS)
    before = sequences(policy)
    policy.adjust(replace(CALM, num_waiting=5), DeviceLoad(), now_s=0.0)
    grown = sequences(policy)
    policy.adjust(replace(CALM, wait_p99_s=3.0), DeviceLoad(), now_s=0.5)
    assert before < grown
    assert sequences(policy) == math.floor(grown * 0.75)


def test_a_device_is_spared_again_only_after_it_has_been_busy_for_a_while() -> None:
    policy = SlackPolicy("m", QOS, LIMITS)
    idle, busy = DeviceLoad(utilization=0.01), DeviceLoad(utilization=0.7)
    told = []
    for number, device in enumerate([busy, idle] + [idle, busy, busy] * 6 + [busy] * 4):
        told += [d.action for d in policy.adjust(CALM, device, now_s=number / 2)]
    assert told == ["start-at-once", "hold-back"]
