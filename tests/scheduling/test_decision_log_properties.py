"""Whatever a run is made of, its record replays: sequences of calls made by hypothesis."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.core.decisions import Decision
from deepseek.core.load import DeviceLoad, ModelLoad
from deepseek.core.qos import LateRequests, QoS
from deepseek.scheduling.batching.base import BatchingPolicy, Demand, StepLimits, StepShape
from deepseek.scheduling.batching.registry import batching_policy_names, policy_named_by
from deepseek.scheduling.decision_log import Line, RecordedPolicy, encode_line, replay

LIMITS = StepLimits(max_tokens=256, max_sequences=64)
MANY_CALLS = st.integers(1, 12)

Call = Callable[[BatchingPolicy, float], list[Decision]]
"""One use of a policy at a time; returns what was decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """A `QueuedRequest`."""

    id: int
    arrived_s: float
    due_s: float
    num_pending: int
    num_computed: int


def known(low: float, high: float) -> st.SearchStrategy[float | None]:
    return st.none() | st.floats(low, high)


def deadlines() -> st.SearchStrategy[float]:
    return st.just(float("inf")) | st.floats(0.001, 5)


@st.composite
def qualities(draw: st.DrawFn, policy: str) -> QoS:
    largest = draw(st.none() | st.integers(1, 64))
    return QoS(
        policy=policy,
        min_batch_size=draw(st.integers(1, largest or 64)),
        max_batch_size=largest,
        max_wait_s=draw(st.floats(0, 1)),
        strict=draw(st.booleans()),
        ttft_s=draw(deadlines()),
        itl_s=draw(deadlines()),
        late=draw(st.sampled_from(LateRequests)),
    )


LOADS = st.builds(
    ModelLoad,
    model=st.just("m"),
    num_waiting=st.integers(0, 200),
    num_running=st.integers(0, 64),
    kv_tokens_used=st.integers(0, 1000),
    kv_tokens_cached=st.integers(0, 1000),
    kv_tokens_capacity=st.sampled_from([0, 1000]),
    oldest_wait_s=known(0, 10),
    wait_p99_s=known(0, 10),
    arrival_rate=known(0, 500),
    service_rate=known(0, 500),
    batch_occupancy=known(0, 1),
    step_time_s=known(0, 2),
    error_rate=known(0, 1),
    deadline_slack_s=known(-10, 10),
)
DEVICES = st.builds(
    DeviceLoad,
    utilization=known(0, 1),
    loop_utilization=known(0, 1),
    memory_used_bytes=st.none() | st.integers(0, 1 << 40),
    memory_total_bytes=st.none() | st.integers(0, 1 << 40),
    memory_bandwidth_utilization=known(0, 1),
    temperature_c=known(-20, 120),
    is_throttled=st.none() | st.booleans(),
    power_w=known(0, 700),
    power_limit_w=known(0, 700),
    clock_mhz=known(0, 2000),
    clock_max_mhz=known(0, 2000),
)
SHAPES = st.builds(
    StepShape,
    num_prefill_tokens=st.integers(0, 256),
    num_decoding=st.integers(0, 64),
    num_context_tokens=st.integers(0, 10_000),
    num_sequences=st.integers(1, 64),
)
QUEUES = st.lists(
    st.builds(
        Queued,
        id=st.integers(1, 1000),
        arrived_s=st.floats(0, 100),
        due_s=st.floats(0, 200) | st.just(float("inf")),
        num_pending=st.integers(1, 300),
        num_computed=st.integers(0, 1000),
    ),
    max_size=8,
)


@st.composite
def reports(draw: st.DrawFn) -> Call:
    load, device, times = draw(LOADS), draw(DEVICES), draw(MANY_CALLS)

    def call(policy: BatchingPolicy, now_s: float) -> list[Decision]:
        return [
            decision
            for number in range(times)
            for decision in policy.adjust(load, device, now_s=now_s + number / 2)
        ]

    return call


@st.composite
def steps(draw: st.DrawFn) -> Call:
    shape, seconds, times = draw(SHAPES), draw(st.floats(1e-6, 2)), draw(MANY_CALLS)
    is_out_of_memory = draw(st.booleans())

    def call(policy: BatchingPolicy, now_s: float) -> list[Decision]:
        for _ in range(times):
            policy.observe(shape, seconds=seconds, is_out_of_memory=is_out_of_memory)
        return []

    return call


@st.composite
def changes(draw: st.DrawFn, policy: str) -> Call:
    qos = draw(qualities(policy))

    def call(policy: BatchingPolicy, now_s: float) -> list[Decision]:
        policy.reconfigure(qos)
        return []

    return call


@st.composite
def plans(draw: st.DrawFn) -> Call:
    """Calls that a record does not hold."""
    waiting = draw(QUEUES)
    running = draw(QUEUES if waiting else QUEUES.filter(bool))
    max_step_s = draw(deadlines())

    def call(policy: BatchingPolicy, now_s: float) -> list[Decision]:
        demand = Demand(now_s=now_s, waiting=waiting, running=running)
        policy.ready_at(demand)
        policy.plan(demand, max_step_s=max_step_s)
        return []

    return call


def run(policy: BatchingPolicy, calls: list[Call]) -> list[Decision]:
    """Make the calls, each some seconds after the one before."""
    return [
        decision
        for number, call in enumerate(calls)
        for decision in call(policy, 100.0 + 7 * number)
    ]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", batching_policy_names())
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_run_replays_to_its_own_decisions(name: str, data: st.DataObject) -> None:
    qos = data.draw(qualities(name))
    kinds = st.one_of(reports(), steps(), changes(name), plans())
    calls = data.draw(st.lists(kinds, max_size=12))
    lines: list[Line] = []
    decided = run(RecordedPolicy(qos, "m", LIMITS, write=lines.append), calls)

    assert run(policy_named_by(qos, "m", LIMITS), calls) == decided, "recording changes nothing"
    texts = [encode_line(line) + b"\n" for line in lines]
    result = replay(texts)
    assert result.is_same
    assert result.models["m"].num_decisions == len(decided)
    # A record that was cut is one of the run's beginning.
    whole = data.draw(st.integers(1, len(texts)))
    assert replay(texts[:whole]).is_same
