"""The step loop over engines that take adapters: commands, answers, and no pause for a disk."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import pytest

from deepseek.core.errors import AdapterNotFound, AdapterRejected
from deepseek.core.qos import QoS
from deepseek.core.wire import (
    Done,
    DropAdapter,
    Event,
    Failed,
    Generate,
    Load,
    LoadAdapter,
    StepOutput,
    Stop,
    TokenDelta,
)
from deepseek.engine.base import Engine, Output
from deepseek.engine.step_loop import Inbox, StepLoop
from deepseek.scheduling.batching.base import Demand, StepPlan
from deepseek.scheduling.sharing.registry import make_step_policy
from deepseek.scheduling.sharing.round_robin import RoundRobin
from deepseek.telemetry.sampling import DeviceSampler
from deepseek.telemetry.sensors.registry import NoSensor
from tests.engine.one_token import OneTokenEngine, hosted, one_token


class AheadEngine(OneTokenEngine):
    """Answers one step after the one that took the requests, as a GPU does."""

    name = "ahead"

    def __init__(self) -> None:
        super().__init__()
        self.in_flight: list[int] = []
        self.num_settled = 0

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self.in_flight)

    def demand(self, now_s: float) -> Demand:
        return Demand(now_s=now_s, waiting=(), running=(), is_in_flight=bool(self.in_flight))

    def step(self, plan: StepPlan | None = None) -> list[Output]:
        ended, self.in_flight, self._waiting = self.in_flight, self._waiting, []
        return [TokenDelta(request_id, [7], "length") for request_id in ended]

    def settle(self) -> None:
        self.num_settled += 1
        if 13 in self.in_flight:
            raise RuntimeError("the device is lost")

    def fail_running(self) -> list[int]:
        failed, self.in_flight = self.in_flight, []
        return failed


class AdaptedEngine(OneTokenEngine):
    """Takes adapters by name; `slow` is read only when it may be."""

    name = "adapted"

    def __init__(self) -> None:
        super().__init__()
        self.loaded: dict[str, int] = {}
        self.may_read = threading.Event()

    def prepare_adapter(self, name: str, path: Path) -> Callable[[], None]:
        if name == "slow":
            self.may_read.wait()
        if name == "wrong":
            raise AdapterRejected(f"{path} does not fit")
        if name == "faulty":
            raise ZeroDivisionError
        return lambda: self.loaded.update({name: threading.get_ident()})

    @property
    def adapter_names(self) -> list[str]:
        return list(self.loaded)

    def drop_adapter(self, name: str) -> None:
        if self.loaded.pop(name, None) is None:
            raise AdapterNotFound(f"adapter {name!r} is not loaded")


class Running:
    """A loop in a thread, and what it has sent."""

    def __init__(self, others: Sequence[Engine] = ()) -> None:
        self.adapted = AdaptedEngine()
        self.commands: Inbox = SimpleQueue()
        self.events: SimpleQueue[Event] = SimpleQueue()
        engines: list[Engine] = [self.adapted, OneTokenEngine(), *others]
        qos = QoS()
        loop = StepLoop(
            [hosted(engine) for engine in engines],
            make_step_policy(
                "fair-share", {engine.name: qos for engine in engines}, max_step_s=0.01
            ),
            sensor=DeviceSampler(NoSensor("none"), interval_s=60.0),
            commands=self.commands,
            send=self.events.put,
            snapshot_interval_s=60.0,
        )
        self.thread = threading.Thread(target=loop.run)
        self.thread.start()

    def next_event(self) -> Event:
        while isinstance(event := self.events.get(timeout=5), Load):
            pass
        return event

    def load(self, command_id: int, name: str, *, model: str = "adapted") -> None:
        self.commands.put(LoadAdapter(id=command_id, model=model, name=name, path=f"/at/{name}"))

    def drop(self, command_id: int, name: str) -> None:
        self.commands.put(DropAdapter(id=command_id, model="adapted", name=name))


@contextmanager
def running_loop(others: Sequence[Engine] = ()) -> Iterator[Running]:
    running = Running(others)
    try:
        yield running
    finally:
        running.adapted.may_read.set()
        running.commands.put(Stop())
        running.thread.join(timeout=5)
        assert not running.thread.is_alive()


def test_an_adapter_is_put_in_place_by_the_loops_own_thread() -> None:
    with running_loop() as running:
        running.load(1, "a")
        assert running.next_event() == Done(1)
        assert running.adapted.loaded == {"a": running.thread.ident}
        running.drop(2, "a")
        assert running.next_event() == Done(2)
        running.drop(3, "a")
        assert running.next_event() == Failed(3, "adapter_not_found", "adapter 'a' is not loaded")


def test_streams_go_on_while_an_adapter_is_read() -> None:
    with running_loop() as running:
        running.load(1, "slow")
        for request_id in (2, 3):
            running.commands.put(one_token(request_id, "adapted"))
            assert running.next_event() == StepOutput([TokenDelta(request_id, [7], "length")])
        assert running.adapted.loaded == {}
        running.adapted.may_read.set()
        assert running.next_event() == Done(1)


@pytest.mark.parametrize(
    ("name", "model", "failed"),
    [
        ("wrong", "adapted", Failed(1, "adapter_rejected", "/at/wrong does not fit")),
        (
            "faulty",
            "adapted",
            Failed(1, "engine_fault", "adapters could not be changed: ZeroDivisionError"),
        ),
        ("a", "plain", Failed(1, "adapter_rejected", "model 'plain' takes no adapters")),
        (
            "a",
            "nobody",
            Failed(1, "model_unavailable", "model 'nobody' is not loaded in this worker"),
        ),
    ],
)
def test_a_load_that_fails_is_answered_and_the_loop_goes_on(
    name: str, model: str, failed: Failed
) -> None:
    with running_loop() as running:
        running.load(1, name, model=model)
        assert running.next_event() == failed
        running.commands.put(one_token(2, "adapted"))
        assert running.next_event() == StepOutput([TokenDelta(2, [7], "length")])


class Charges(RoundRobin):
    """Takes turns, and remembers who was charged."""

    def __init__(self, models: Mapping[str, QoS]) -> None:
        super().__init__(models, max_step_s=0.01)
        self.charged: list[str] = []

    def charge(self, model: str, seconds: float) -> None:
        assert seconds >= 0
        self.charged.append(model)


def run_to_the_end(engines: Sequence[Engine], requests: Sequence[Generate]) -> list[str]:
    """Run a loop over these requests; return who was charged for device time."""
    policy = Charges({engine.name: QoS() for engine in engines})
    commands: Inbox = SimpleQueue()
    for request in requests:
        commands.put(request)
    commands.put(Stop())
    StepLoop(
        [hosted(engine) for engine in engines],
        policy,
        sensor=DeviceSampler(NoSensor("none"), interval_s=60.0),
        commands=commands,
        send=lambda event: None,
        snapshot_interval_s=60.0,
    ).run()
    return policy.charged


def test_a_device_that_works_ahead_is_charged_to_whom_it_works_for() -> None:
    ahead = AheadEngine()
    work = [one_token(1, "ahead"), one_token(2, "plain")]
    assert run_to_the_end([ahead, OneTokenEngine()], work) == ["ahead", "ahead", "plain", "ahead"]
    assert ahead.num_settled == 1, "before the other's step, and not before its own next one"


def test_work_ahead_that_fails_is_the_failure_of_its_own_model() -> None:
    ahead = AheadEngine()
    work = [one_token(13, "ahead"), one_token(2, "plain")]
    assert run_to_the_end([ahead, OneTokenEngine()], work) == ["ahead", "ahead", "plain"]
    assert not ahead.has_work


class ColdEngine(OneTokenEngine):
    """Has something to do that its first step should not wait for."""

    name = "cold"

    def __init__(self) -> None:
        super().__init__()
        self.is_warm = threading.Event()
        self.num_warmed = 0

    def warm_up(self) -> None:
        assert not self.has_work
        self.num_warmed += 1
        self.is_warm.set()


def test_an_engine_warms_up_once_and_while_nobody_waits() -> None:
    cold = ColdEngine()
    with running_loop([cold]) as running:
        running.commands.put(one_token(1, "cold"))
        assert running.next_event() == StepOutput([TokenDelta(1, [7], "length")])
        assert not cold.is_warm.is_set(), "a request comes first"
        assert cold.is_warm.wait(timeout=5)
        running.commands.put(one_token(2, "cold"))
        assert running.next_event() == StepOutput([TokenDelta(2, [7], "length")])
    assert cold.num_warmed == 1
