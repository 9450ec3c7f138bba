"""One model of a worker: plans, deadlines, refusals, its account; and several in the step loop."""

import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from deepseek.core.load import DeviceLoad
from deepseek.core.qos import LateRequests, Priority, QoS
from deepseek.core.wire import (
    Configure,
    Done,
    Event,
    Failed,
    Generate,
    Load,
    StepOutput,
    Stop,
)
from deepseek.engine.engines.decoder import DecoderEngine
from deepseek.engine.hosted_model import HostedModel
from deepseek.engine.step_loop import Inbox, StepLoop
from deepseek.engine.step_record import StepRecord
from deepseek.scheduling.batching.base import StepPlan
from deepseek.scheduling.batching.registry import make_batching_policy
from deepseek.scheduling.sharing.registry import make_step_policy
from deepseek.telemetry.meters import ModelMeter
from deepseek.telemetry.sampling import DeviceSampler
from tests.engine.families import make_engine
from tests.engine.generation import ask


@pytest.fixture
def engine(tiny_llama_dir: Path) -> DecoderEngine:
    return make_engine(tiny_llama_dir)


def hosted(engine: DecoderEngine, **settings: Any) -> HostedModel:
    qos = QoS(**settings)
    policy = make_batching_policy(qos.policy, engine.name, qos, engine.limits)
    return HostedModel(engine, policy, ModelMeter(0.0), qos=qos)


def test_a_step_keeps_to_its_plan(engine: DecoderEngine) -> None:
    for number in range(4):
        engine.add(ask(number, [5 + number] * 10, 4))
    engine.step(StepPlan(max_tokens=12, max_sequences=2))
    report = engine.last_step
    assert report is not None
    assert report.shape.num_prefill_tokens == 12
    assert len(engine.demand(0.0).running) == 2
    assert len(report.waits_s) == 2


def test_requests_are_admitted_in_the_plans_order(engine: DecoderEngine) -> None:
    for number in range(3):
        engine.add(ask(number, [5 + number] * 10, 4))
    first, second, third = engine.demand(0.0).waiting
    engine.step(StepPlan(max_tokens=48, max_sequences=8, order=[third, first]))
    demand = engine.demand(0.0)
    assert [request.id for request in demand.running] == [third.id, first.id]
    assert [request.id for request in demand.waiting] == [second.id]


def test_the_next_token_is_due_by_the_promised_mean(engine: DecoderEngine) -> None:
    engine.expect(QoS(ttft_s=2.0, itl_s=0.5))
    now_s = time.monotonic()
    engine.add(ask(1, [5] * 10, 8), now_s=now_s)
    (waiting,) = engine.demand(now_s).waiting
    assert waiting.due_s == pytest.approx(now_s + 2.0)
    engine.step()
    (running,) = engine.demand(now_s).running
    first_due_s = running.due_s
    assert now_s + 0.5 <= first_due_s <= time.monotonic() + 0.5
    engine.step()
    # From the first token on, whenever the second one came.
    assert running.due_s == pytest.approx(first_due_s + 0.5)


def test_each_request_reports_its_wait_once(engine: DecoderEngine) -> None:
    engine.add(ask(1, [5] * 100, 4))  # three chunks
    waits = []
    while engine.has_work:
        engine.step()
        if engine.last_step is not None:
            waits.extend(engine.last_step.waits_s)
    assert len(waits) == 1


def test_a_late_request_is_refused_with_a_time_to_come_back(engine: DecoderEngine) -> None:
    model = hosted(engine, ttft_s=0.05, late=LateRequests.REFUSE)
    now_s = time.monotonic()
    model.add(ask(1, [5] * 10, 2), now_s=now_s)
    model.account(model.step(now_s, max_step_s=math.inf), seconds=0.01, now_s=now_s + 0.01)
    model.add(ask(2, [6] * 10, 2), now_s=now_s - 10.0)
    outputs = model.step(now_s + 0.01, max_step_s=math.inf).outputs
    (failed,) = [output for output in outputs if isinstance(output, Failed)]
    assert (failed.id, failed.code) == (2, "deadline_unreachable")
    assert failed.retry_after_s is not None
    assert failed.retry_after_s >= 1.0
    assert all(request.id != 2 for request in engine.demand(now_s).waiting)


def test_its_load_tells_waits_slack_and_rates(engine: DecoderEngine) -> None:
    model = hosted(engine, ttft_s=1.0)
    now_s = time.monotonic()
    for number in range(9):
        model.add(ask(number, [5 + number] * 10, 2), now_s=now_s - 0.4)
    load = model.load(now_s)
    assert load.num_waiting == 9
    assert load.oldest_wait_s == pytest.approx(0.4)
    assert load.deadline_slack_s == pytest.approx(0.6)
    assert load.service_rate is None
    while engine.has_work:
        result = model.step(now_s, max_step_s=math.inf)
        model.account(result, seconds=0.02, now_s=now_s)
    load = model.load(now_s)
    assert load.service_rate == pytest.approx(9 / model.busy_s, rel=0.2)
    assert load.step_time_s == pytest.approx(0.02)
    assert load.wait_p99_s is not None
    assert load.oldest_wait_s is None


class Hanging:
    """A sensor whose driver never comes back."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def read(self) -> DeviceLoad:
        self.released.wait()
        return DeviceLoad()


class Raising:
    """A sensor whose driver is broken."""

    def read(self) -> DeviceLoad:
        raise ZeroDivisionError


class Running:
    """A step loop in a thread, and what it has sent."""

    def __init__(self, models: list[HostedModel], sensor: Any, record: StepRecord | None) -> None:
        self.commands: Inbox = SimpleQueue()
        self.events: SimpleQueue[Event] = SimpleQueue()
        sampler = DeviceSampler(sensor, interval_s=0.01)
        sampler.start()
        loop = StepLoop(
            models,
            make_step_policy("fair-share", {m.name: m.qos for m in models}, max_step_s=0.01),
            sensor=sampler,
            commands=self.commands,
            send=self.events.put,
            snapshot_interval_s=0.01,
            record=record,
        )
        self.thread = threading.Thread(target=loop.run)
        self.thread.start()

    def wait_for(self, kind: type, *, seconds: float = 5.0) -> Any:
        """Return the next event of a kind."""
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            try:
                event = self.events.get(timeout=0.1)
            except Empty:
                continue
            if isinstance(event, kind):
                return event
        raise AssertionError(f"no {kind.__name__} within {seconds} s")


@contextmanager
def running_loop(
    *models: HostedModel, sensor: Any = None, record: StepRecord | None = None
) -> Iterator[Running]:
    running = Running(list(models), sensor or Raising(), record)
    try:
        yield running
    finally:
        running.commands.put(Stop())
        running.thread.join(timeout=5)
        assert not running.thread.is_alive()


def test_a_sensor_that_raises_or_hangs_stops_no_step(engine: DecoderEngine) -> None:
    hanging = Hanging()
    for number, sensor in enumerate((Raising(), hanging)):
        with running_loop(hosted(engine), sensor=sensor) as running:
            running.commands.put(Generate([ask(number, [5] * 10, 1)]))
            output = running.wait_for(StepOutput)
            assert output.deltas[0].finish_reason == "length"
            assert running.wait_for(Load).snapshot.device.temperature_c is None
    hanging.released.set()


def test_new_settings_are_taken_while_it_runs_or_refused_as_a_whole(
    engine: DecoderEngine,
) -> None:
    model = hosted(engine)
    with running_loop(model) as running:
        new = QoS(priority=Priority.CRITICAL, reserved_share=0.5, ttft_s=1.0)
        running.commands.put(Configure(7, {"m": new}))
        assert running.wait_for(Done) == Done(7)
        assert model.qos == new
        running.commands.put(Configure(8, {"m": QoS(), "nobody": QoS()}))
        failed = running.wait_for(Failed)
        assert failed.id == 8
        assert "nobody" in failed.message
        running.commands.put(Configure(9, {"m": QoS(reserved_share=1.5)}))
        assert running.wait_for(Failed).code == "configuration_error"
        assert model.qos == new


def test_a_model_that_holds_back_lets_another_step(tiny_llama_dir: Path) -> None:
    patient = make_engine(tiny_llama_dir)
    patient.name = "patient"
    eager = make_engine(tiny_llama_dir)
    eager.name = "eager"
    models = [
        hosted(patient, ttft_s=60.0, min_batch_size=4, max_wait_s=1.5, strict=True),
        hosted(eager),
    ]

    def to(model: str, request_id: int) -> Generate:
        request = ask(request_id, [5] * 10, 1)
        return Generate([type(request)(**{**_fields(request), "model": model})])

    with running_loop(*models) as running:
        running.commands.put(to("patient", 1))
        running.commands.put(to("eager", 2))
        assert running.wait_for(StepOutput).deltas[0].id == 2
        assert running.wait_for(StepOutput).deltas[0].id == 1


def test_a_step_record_has_a_line_for_every_step(engine: DecoderEngine, tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    with running_loop(hosted(engine), record=StepRecord(path)) as running:
        running.commands.put(Generate([ask(1, [5] * 100, 3)]))
        while running.wait_for(StepOutput).deltas[0].finish_reason is None:
            pass
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["prefill"], line["decoding"]) for line in lines] == [
        (48, 0), (48, 0), (4, 0), (0, 1), (0, 1),
    ]  # fmt: skip
    assert all(line["model"] == "m" and line["s"] > 0 for line in lines)


def test_a_step_record_that_cannot_be_written_is_said_once_and_stops_nothing(
    engine: DecoderEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = StepRecord(tmp_path / "absent" / "steps.jsonl")
    with running_loop(hosted(engine), record=record) as running:
        for number in range(2):
            running.commands.put(Generate([ask(number, [5 + number] * 10, 90)]))
            while running.wait_for(StepOutput).deltas[-1].finish_reason is None:
                pass
    said = [r for r in caplog.records if "step_record" in r.getMessage()]
    assert len(said) == 1


def _fields(request: Any) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__dataclass_fields__}
