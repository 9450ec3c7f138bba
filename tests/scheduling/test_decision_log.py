"""A recorded run replays to the same decisions, and a changed one does not."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest

from deepseek.core.decisions import Decision
from deepseek.core.errors import ConfigurationError
from deepseek.core.load import DeviceLoad, ModelLoad
from deepseek.core.qos import QoS
from deepseek.scheduling.batching.base import BatchingPolicy, Demand, StepLimits, StepShape
from deepseek.scheduling.batching.registry import batching_policy_names, make_batching_policy
from deepseek.scheduling.decision_log import Ended, Line, RecordedPolicy, encode_line, replay

LIMITS = StepLimits(max_tokens=256, max_sequences=64)
DEADLINES = QoS(ttft_s=0.5, itl_s=0.05, max_wait_s=0.2)
CALM = ModelLoad(
    model="m",
    num_waiting=0,
    num_running=2,
    kv_tokens_used=10,
    kv_tokens_cached=0,
    kv_tokens_capacity=1000,
    step_time_s=0.011,
    batch_occupancy=0.1,
    arrival_rate=4.0,
    service_rate=30.0,
    error_rate=0.0,
)
BUSY = replace(
    CALM, num_waiting=90, num_running=64, kv_tokens_used=980, step_time_s=0.09,
    oldest_wait_s=1.7, wait_p99_s=1.2, batch_occupancy=1.0, deadline_slack_s=-0.3,
    arrival_rate=61.3, error_rate=0.125,
)  # fmt: skip
HOT = DeviceLoad(utilization=0.99, temperature_c=91.0, is_throttled=True, clock_mhz=1000.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A `QueuedRequest` that nothing has been computed of."""

    id: int
    arrived_s: float
    due_s: float
    num_pending: int = 30
    num_computed: int = 0


class Run:
    """One policy under a load that comes and goes."""

    def __init__(self, *, policy: str, model: str = "m", is_recorded: bool = True) -> None:
        self.lines: list[Line] = []
        self.decisions: list[Decision] = []
        qos = replace(DEADLINES, policy=policy)
        self.policy: BatchingPolicy = (
            RecordedPolicy(qos, model, LIMITS, write=self.lines.append)
            if is_recorded
            else make_batching_policy(policy, model, qos, LIMITS)
        )
        self._model = model
        self._now_s = 100.0

    def report(self, load: ModelLoad, device: DeviceLoad, *, times: int) -> None:
        for _ in range(times):
            self._now_s += 0.5
            load = replace(load, model=self._model, num_waiting=load.num_waiting + 1)
            self.decisions += self.policy.adjust(load, device, now_s=self._now_s)

    def steps(self, *, times: int, out_of_memory: bool = False) -> None:
        for number in range(times):
            shape = StepShape(
                num_prefill_tokens=16 * number,
                num_decoding=number,
                num_context_tokens=100 * number,
                num_sequences=number + 1,
            )
            self.policy.observe(shape, seconds=0.01 + number / 3000, is_out_of_memory=out_of_memory)

    def text(self) -> list[bytes]:
        return [encode_line(line) + b"\n" for line in self.lines]


def eventful(policy: str, *, is_recorded: bool = True) -> Run:
    run = Run(policy=policy, is_recorded=is_recorded)
    run.steps(times=12)
    run.report(CALM, DeviceLoad(), times=8)
    run.report(BUSY, HOT, times=30)
    run.policy.reconfigure(replace(DEADLINES, policy=policy, max_batch_size=7, ttft_s=math.inf))
    run.steps(times=2, out_of_memory=True)
    run.report(CALM, DeviceLoad(utilization=0.01), times=40)
    return run


@pytest.mark.parametrize("policy", batching_policy_names())
def test_a_run_of_every_policy_replays_to_the_same_decisions(policy: str) -> None:
    run = eventful(policy)
    result = replay(run.text())
    assert result.is_same
    (model,) = result.models.values()
    assert (model.num_steps, model.num_reports) == (14, 78)
    assert model.num_decisions == len(run.decisions)
    assert model.policies == [policy]


@pytest.mark.parametrize("policy", ["slack", "step-up"])
def test_recording_changes_no_decision(policy: str) -> None:
    recorded = eventful(policy)
    assert recorded.decisions, "the load above makes this policy decide"
    assert eventful(policy, is_recorded=False).decisions == recorded.decisions


@pytest.mark.parametrize("policy", batching_policy_names())
def test_decisions_do_not_depend_on_calls_that_are_not_recorded(policy: str) -> None:
    quiet, planned = Run(policy=policy), Run(policy=policy)
    for load in (CALM, BUSY, CALM):
        for run in (quiet, planned):
            run.steps(times=4)
            run.report(load, HOT, times=12)
        queue = [Waiting(id=n, arrived_s=100.0 + n, due_s=100.5 + n) for n in range(40)]
        demand = Demand(now_s=120.0, waiting=queue, running=[])
        planned.policy.ready_at(demand)
        planned.policy.plan(demand, max_step_s=0.01)
    assert planned.decisions == quiet.decisions
    assert replay(planned.text()).is_same


def test_a_decision_that_was_changed_afterwards_is_found_with_its_line() -> None:
    lines = eventful("slack").text()
    number = next(n for n, text in enumerate(lines) if json.loads(text).get("decisions"))
    line = json.loads(lines[number])
    line["decisions"][0]["action"] = "something-else"
    lines[number] = json.dumps(line).encode() + b"\n"
    result = replay(lines)
    assert not result.is_same
    (difference,) = result.models["m"].differences
    assert difference.line == number + 1
    assert difference.recorded[0]["action"] == "something-else"
    assert difference.replayed[0]["action"] != "something-else"


@pytest.mark.parametrize("kind", ["step", "qos"])
def test_steps_and_settings_are_part_of_what_decides(kind: str) -> None:
    """Leave one kind of line out: decisions that depended on it come out differently."""
    lines = [text for text in eventful("slack").text() if json.loads(text)["type"] != kind]
    assert not replay(lines).is_same


def test_the_models_of_one_worker_are_replayed_apart() -> None:
    first, second = Run(policy="slack", model="a"), Run(policy="step-up", model="b")
    lines: list[bytes] = []
    for load in (CALM, BUSY, CALM):
        for run in (first, second):
            run.report(load, HOT, times=12)
    for pair in zip(first.text(), second.text(), strict=True):
        lines += pair
    result = replay(lines)
    assert result.is_same
    assert {name: model.policies for name, model in result.models.items()} == {
        "a": ["slack"],
        "b": ["step-up"],
    }
    assert result.models["b"].num_decisions == len(second.decisions) > 0


def test_a_policy_made_in_place_of_another_begins_anew() -> None:
    before, after = eventful("slack"), eventful("step-up")
    result = replay([*before.text(), *after.text()])
    assert result.is_same
    assert result.models["m"].policies == ["slack", "step-up"]


def test_a_line_cut_short_at_the_end_is_passed_over() -> None:
    lines = eventful("slack").text()
    whole = replay(lines).models["m"].num_reports
    lines[-1] = lines[-1][:20]
    assert replay(lines).models["m"].num_reports == whole - 1


def test_the_end_of_a_full_record_is_told() -> None:
    lines = [*eventful("greedy").text(), encode_line(Ended(reason="it is full")) + b"\n"]
    assert replay(lines).ended == "it is full"


def changed(lines: Iterable[bytes], number: int, text: bytes) -> list[bytes]:
    replaced = list(lines)
    replaced[number] = text
    return replaced


def test_what_is_no_record_is_refused_with_its_line() -> None:
    lines = eventful("slack").text()
    with pytest.raises(ConfigurationError, match="line 3 is not a line of a decision record"):
        replay(changed(lines, 2, b'{"type": "poem"}\n'))
    with pytest.raises(ConfigurationError, match="line 1 is not a line of a decision record"):
        replay(changed(lines, 0, b"not json\n"))
    with pytest.raises(ConfigurationError, match="line 1: the record does not say how"):
        replay(lines[1:])
    absent = lines[0].replace(b'"slack"', b'"absent"')
    with pytest.raises(ConfigurationError, match="'absent' is unknown; known: aimd"):
        replay(changed(lines, 0, absent))
