"""The worker's main loop: take commands, pick a model, step it, send what it produced."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue

from deepseek.core.errors import AdapterRejected, DeepseekError, EngineFault, ModelUnavailable
from deepseek.core.load import LoadSnapshot
from deepseek.core.wire import (
    Abort,
    AdapterDone,
    Command,
    DropAdapter,
    Encode,
    Event,
    Failed,
    Generate,
    Load,
    LoadAdapter,
    StepOutput,
    Stop,
    TokenDelta,
)
from deepseek.engine.base import AdapterHost, Engine, Request
from deepseek.engine.memory import resident_bytes
from deepseek.scheduling.step_policies import StepPolicy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdapterRead:
    """What has become of reading an adapter in a thread, to be put in place by the loop."""

    id: int
    """Of the command that asked for it."""
    install: Future[Callable[[], None]]


Inbox = SimpleQueue[Command | AdapterRead | None]
"""What the loop does between two steps; None: the platform is gone."""


class StepLoop:
    """Steps several engines on one device, one at a time."""

    def __init__(
        self,
        engines: dict[str, Engine],
        policy: StepPolicy,
        *,
        commands: Inbox,
        send: Callable[[Event], None],
        snapshot_interval_s: float,
    ) -> None:
        """Take commands from a queue and send events by `send`."""
        self._engines = engines
        self._policy = policy
        self._commands = commands
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapters")
        self._send = send
        self._interval_s = snapshot_interval_s
        self._busy_s = dict.fromkeys(engines, 0.0)
        self._num_steps = dict.fromkeys(engines, 0)
        self._owners: dict[int, Engine] = {}
        self._started = time.monotonic()
        self._next_report = 0.0
        self._stopping = False

    def run(self) -> None:
        """Loop until a `Stop` has been taken and all work is done, or the platform is gone."""
        try:
            self._run()
        finally:
            self._reader.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        while True:
            if not self._take_commands(block=not self._ready()):
                return
            self._report()
            if ready := self._ready():
                self._step(self._policy.pick(ready))
            elif self._stopping:
                return

    def _ready(self) -> list[str]:
        return [name for name, engine in self._engines.items() if engine.has_work]

    def _step(self, name: str) -> None:
        engine = self._engines[name]
        started = time.perf_counter()
        events: list[Event] = []
        deltas: list[TokenDelta] = []
        try:
            for output in engine.step():
                if isinstance(output, TokenDelta):
                    deltas.append(output)
                else:
                    events.append(output)
        except Exception as error:
            logger.exception("a step of model %s failed", name)
            message = f"an engine step of model {name!r} failed: {type(error).__name__}"
            events.extend(Failed(id, "engine_fault", message) for id in engine.fail_running())
        elapsed = time.perf_counter() - started
        self._policy.charge(name, elapsed)
        self._busy_s[name] += elapsed
        self._num_steps[name] += 1
        if deltas:
            events.append(StepOutput(deltas))
        for event in events:
            self._forget_finished(event)
            self._send(event)

    def _forget_finished(self, event: Event) -> None:
        if isinstance(event, StepOutput):
            for delta in event.deltas:
                if delta.finish_reason is not None:
                    self._owners.pop(delta.id, None)
        elif not isinstance(event, Load):
            self._owners.pop(getattr(event, "id", -1), None)

    def _take_commands(self, *, block: bool) -> bool:
        """Apply every queued command; return False when the platform has gone."""
        try:
            if block and not self._stopping:
                command = self._commands.get(timeout=self._interval_s)
            else:
                command = self._commands.get_nowait()
            while True:
                if command is None:
                    return False
                self._apply(command)
                command = self._commands.get_nowait()
        except Empty:
            return True

    def _apply(self, command: Command | AdapterRead) -> None:
        match command:
            case Generate(requests):
                for request in requests:
                    self._add(request)
            case Encode(request):
                self._add(request)
            case Abort(ids):
                for request_id in ids:
                    engine = self._owners.pop(request_id, None)
                    if engine is not None:
                        engine.abort(request_id)
            case LoadAdapter():
                self._load_adapter(command)
            case AdapterRead(command_id, install):
                self._carry_out(command_id, lambda: install.result()())
            case DropAdapter(id=command_id, model=model, name=name):
                self._carry_out(command_id, lambda: self._adapter_host(model).drop_adapter(name))
            case Stop():
                self._stopping = True

    def _add(self, request: Request) -> None:
        engine = self._engines.get(request.model)
        if engine is None:
            message = f"model {request.model!r} is not loaded in this worker"
            self._send(Failed(request.id, "model_unavailable", message))
            return
        try:
            engine.add(request)
        except DeepseekError as error:
            self._send(Failed(request.id, error.code, error.message, error.param))
            return
        self._owners[request.id] = engine

    def _load_adapter(self, command: LoadAdapter) -> None:
        """Read in a thread, so that running streams do not wait for a disk."""

        def read() -> Callable[[], None]:
            return self._adapter_host(command.model).prepare_adapter(
                command.name, Path(command.path)
            )

        reading = self._reader.submit(read)
        reading.add_done_callback(lambda done: self._commands.put(AdapterRead(command.id, done)))

    def _carry_out(self, command_id: int, change: Callable[[], None]) -> None:
        """Change an engine's adapters and answer the command; a refusal changes nothing."""
        try:
            change()
        except DeepseekError as error:
            self._send(Failed(command_id, error.code, error.message, error.param))
        except Exception as error:
            logger.exception("adapters could not be changed")
            fault = EngineFault(f"adapters could not be changed: {type(error).__name__}")
            self._send(Failed(command_id, fault.code, fault.message))
        else:
            self._send(AdapterDone(command_id))

    def _adapter_host(self, model: str) -> AdapterHost:
        engine = self._engines.get(model)
        if engine is None:
            raise ModelUnavailable(f"model {model!r} is not loaded in this worker")
        if not isinstance(engine, AdapterHost):
            raise AdapterRejected(f"model {model!r} takes no adapters")
        return engine

    def _report(self) -> None:
        now = time.monotonic()
        if now < self._next_report:
            return
        self._next_report = now + self._interval_s
        loads = [
            replace(engine.load(), busy_s=self._busy_s[name], num_steps=self._num_steps[name])
            for name, engine in self._engines.items()
        ]
        uptime_s = now - self._started
        self._send(Load(LoadSnapshot(uptime_s=uptime_s, rss_bytes=resident_bytes(), models=loads)))
