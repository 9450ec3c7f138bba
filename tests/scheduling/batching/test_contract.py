"""What every batching policy promises, whichever its name."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.core.load import DeviceLoad, ModelLoad
from deepseek.core.qos import LateRequests, QoS
from deepseek.scheduling.batching.base import BatchingPolicy, Demand, StepShape
from deepseek.scheduling.batching.registry import batching_policy_names, make_batching_policy
from tests.scheduling.batching.queue import LIMITS, Queued, Server

NAMES = batching_policy_names()

qualities = st.builds(
    QoS,
    min_batch_size=st.integers(1, 8),
    max_batch_size=st.none() | st.integers(8, 64),
    max_wait_s=st.sampled_from([0.0, 0.05, 0.2]),
    strict=st.booleans(),
    ttft_s=st.sampled_from([math.inf, 0.2, 1.0]),
    itl_s=st.sampled_from([math.inf, 0.05]),
    late=st.sampled_from(LateRequests),
)
seconds = st.floats(0.0, 5.0)
waiting_requests = st.builds(
    Queued,
    id=st.integers(0, 10_000),
    arrived_s=seconds,
    due_s=seconds | st.just(math.inf),
    num_pending=st.integers(2, 400),
)
running_requests = st.builds(
    Queued,
    id=st.integers(10_001, 20_000),
    arrived_s=seconds,
    due_s=st.floats(4.0, 8.0) | st.just(math.inf),
    num_pending=st.just(1) | st.integers(2, 400),
    num_computed=st.integers(0, 2000),
)
shapes = st.builds(
    StepShape,
    num_prefill_tokens=st.integers(0, 192),
    num_decoding=st.integers(0, 64),
    num_context_tokens=st.integers(0, 20_000),
    num_sequences=st.integers(1, 64),
)
steps = st.lists(st.tuples(shapes, st.floats(1e-4, 2.0), st.booleans()), max_size=20)
maybe = st.none() | st.floats(0.0, 100.0)
loads = st.builds(
    ModelLoad,
    model=st.just("m"),
    num_waiting=st.integers(0, 300),
    num_running=st.integers(0, 64),
    kv_tokens_used=st.integers(0, 100),
    kv_tokens_cached=st.just(0),
    kv_tokens_capacity=st.sampled_from([0, 100]),
    oldest_wait_s=maybe,
    wait_p99_s=maybe,
    arrival_rate=maybe,
    service_rate=maybe,
    batch_occupancy=st.none() | st.floats(0.0, 1.0),
    step_time_s=maybe,
    error_rate=st.none() | st.floats(0.0, 1.0),
    deadline_slack_s=st.none() | st.floats(-10.0, 10.0),
)
part = st.none() | st.floats(0.0, 1.0)
devices = st.builds(
    DeviceLoad,
    utilization=part,
    memory_used_bytes=st.none() | st.integers(0, 100),
    memory_total_bytes=st.none() | st.just(100),
    memory_bandwidth_utilization=part,
    temperature_c=st.none() | st.floats(0, 110),
    is_throttled=st.none() | st.booleans(),
    power_w=maybe,
    power_limit_w=maybe,
    clock_mhz=maybe,
    clock_max_mhz=st.none() | st.floats(1.0, 100.0),
    loop_utilization=part,
)
reports = st.lists(st.tuples(loads, devices), max_size=12)


def unique(requests: list[Queued]) -> list[Queued]:
    return list({request.id: request for request in requests}.values())


def prepared(name: str, qos: QoS, seen: list[Any], told: list[Any]) -> BatchingPolicy:
    policy = make_batching_policy(name, "m", qos, LIMITS)
    for shape, took_s, ran_out in seen:
        policy.observe(shape, seconds=took_s, is_out_of_memory=ran_out)
    for number, (load, device) in enumerate(told):
        policy.adjust(load, device, now_s=4.0 * number)
    return policy


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(
    qos=qualities,
    seen=steps,
    told=reports,
    waiting=st.lists(waiting_requests, max_size=40),
    running=st.lists(running_requests, max_size=20),
    max_step_s=st.sampled_from([math.inf, 0.01]),
)
def test_no_plan_exceeds_its_bounds_and_every_plan_allows_progress(
    name: str,
    qos: QoS,
    seen: list[Any],
    told: list[Any],
    waiting: list[Queued],
    running: list[Queued],
    max_step_s: float,
) -> None:
    waiting = sorted(unique(waiting), key=lambda request: request.arrived_s)
    demand = Demand(now_s=5.0, waiting=waiting, running=unique(running))
    if not (demand.waiting or demand.running):
        return
    policy = prepared(name, qos, seen, told)
    ready_s = policy.ready_at(demand)
    if waiting:
        assert ready_s <= max(5.0, waiting[0].arrived_s + qos.max_wait_s)
    assert ready_s <= 5.0 + qos.max_wait_s
    plan = policy.plan(demand, max_step_s=max_step_s)
    assert 1 <= plan.max_tokens <= LIMITS.max_tokens
    most = min(LIMITS.max_sequences, qos.max_batch_size or LIMITS.max_sequences)
    assert 1 <= plan.max_sequences <= most
    order = list(demand.waiting if plan.order is None else plan.order)
    ids = [request.id for request in order]
    assert len(set(ids)) == len(ids)
    assert set(ids) <= {request.id for request in waiting}
    refused = {request.id for request in plan.refused}
    assert not refused & set(ids)
    assert refused <= {request.id for request in waiting}
    if qos.late is not LateRequests.REFUSE:
        assert not refused
    if not demand.running:
        assert order or refused


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(qos=qualities, seen=steps, told=reports)
def test_the_same_calls_give_the_same_decisions(
    name: str, qos: QoS, seen: list[Any], told: list[Any]
) -> None:
    first, second = (prepared(name, qos, seen, []) for _ in range(2))
    for number, (load, device) in enumerate(told):
        decisions = first.adjust(load, device, now_s=4.0 * number)
        assert decisions == second.adjust(load, device, now_s=4.0 * number)
        for decision in decisions:
            assert decision.model == "m"
            assert decision.reason
            assert decision.at_s == 4.0 * number


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(
    qos=qualities,
    arrivals=st.lists(
        st.tuples(st.floats(0.0, 1.0), st.integers(2, 400), st.integers(1, 20)),
        min_size=1,
        max_size=60,
    ),
)
def test_nobody_waits_for_ever(name: str, qos: QoS, arrivals: list[tuple[float, int, int]]) -> None:
    policy = make_batching_policy(name, "m", qos, LIMITS)
    server = Server(policy, itl_s=qos.itl_s)
    coming = [
        Queued(number, at_s, at_s + qos.ttft_s, num_pending=prompt, num_left=answer)
        for number, (at_s, prompt, answer) in enumerate(sorted(arrivals))
    ]
    server.serve(coming)
    assert len(server.finished) + len(server.refused) == len(arrivals)
