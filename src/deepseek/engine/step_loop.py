"""The worker's main loop: take commands, pick a model, step it, send what it produced.

Between two steps it also lets models come and go (`deepseek.engine.residency`).
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue

from deepseek.core.errors import ConfigurationError, DeepseekError
from deepseek.core.load import LoadSnapshot
from deepseek.core.qos import QoS
from deepseek.core.wire import (
    Abort,
    Command,
    Configure,
    Done,
    DropAdapter,
    Encode,
    Encoded,
    Event,
    Failed,
    Generate,
    Load,
    LoadAdapter,
    StepOutput,
    Stop,
    TokenDelta,
)
from deepseek.engine.adapter_commands import AdapterCommands, AdapterRead
from deepseek.engine.base import Request
from deepseek.engine.hosted_model import HostedModel, StepResult
from deepseek.engine.memory import resident_bytes
from deepseek.engine.model_loader import ModelRead
from deepseek.engine.residency import Residents
from deepseek.engine.step_record import StepRecord
from deepseek.scheduling.batching.base import NOTHING
from deepseek.scheduling.batching.registry import check_batching_policy
from deepseek.scheduling.sharing.base import StepPolicy
from deepseek.telemetry.meters import DeviceBusy
from deepseek.telemetry.sampling import DeviceSampler

logger = logging.getLogger(__name__)

_IDLE_S = 0.25
"""How long nothing has happened when the loop does what nobody waits for."""

_MOST_BUSY = 0.5
"""Part of the time in which the loop ran steps, above which nothing is loaded ahead."""

Inbox = SimpleQueue[Command | AdapterRead | ModelRead | None]
"""What the loop does between two steps; None: the platform is gone."""


class StepLoop:
    """Steps several models on one device, one at a time."""

    def __init__(
        self,
        models: Sequence[HostedModel],
        policy: StepPolicy,
        *,
        sensor: DeviceSampler,
        commands: Inbox,
        send: Callable[[Event], None],
        snapshot_interval_s: float,
        record: StepRecord | None = None,
        residents: Residents | None = None,
    ) -> None:
        """Take commands from a queue and send events by `send`.

        `residents`: says which models are there; None: all, and they stay.
        """
        self._models = {model.name: model for model in models}
        self._policy = policy
        self._sensor = sensor
        self._commands = commands
        self._adapters = AdapterCommands(self._models, put=commands.put, send=send)
        self._send = send
        self._interval_s = snapshot_interval_s
        self._record = record
        self._residents = residents
        self._owners: dict[int, HostedModel] = {}
        self._started_s = time.monotonic()
        self._busy = DeviceBusy(self._started_s)
        self._next_report_s = 0.0
        self._last_work_s = self._started_s
        """When a command came or a step ended."""
        self._stopping = False
        self._last: HostedModel | None = None
        """Who stepped last: the device may still be at it."""

    def run(self) -> None:
        """Loop until a `Stop` has been taken and all work is done, or the platform is gone."""
        try:
            self._run()
        finally:
            self._adapters.close()
            if self._residents is not None:
                self._residents.close()
            self._sensor.stop()
            if self._record is not None:
                self._record.flush()

    def _run(self) -> None:
        wait_s = 0.0
        while True:
            if not self._take_commands(wait_s=wait_s):
                return
            self._report()
            ready, wait_s = self._ready(time.monotonic())
            self._look_after_residents(is_idle=not ready)
            if ready:
                self._step(self._policy.pick(ready))
            elif self._stopping:
                return
            else:
                wait_s = min(wait_s, self._use_idle_time())

    def _look_after_residents(self, *, is_idle: bool) -> None:
        if self._residents is not None and not self._stopping:
            is_idle = is_idle and self._busy.latest < _MOST_BUSY
            self._residents.look(time.monotonic(), is_idle=is_idle)

    def _use_idle_time(self) -> float:
        """Do one thing that nobody waits for; return when to come back for the next."""
        cold = next((model for model in self._models.values() if model.can_warm_up), None)
        if cold is None:
            return self._interval_s
        idle_s = time.monotonic() - self._last_work_s
        if idle_s < _IDLE_S:
            return _IDLE_S - idle_s
        cold.warm_up()
        return 0.0

    def _ready(self, now_s: float) -> tuple[list[str], float]:
        """Return who could step now; and how long to wait for commands before looking again."""
        ready: list[str] = []
        wait_s = self._interval_s
        for name, model in self._models.items():
            ready_at_s = model.ready_at(now_s)
            if ready_at_s is None:
                continue
            if ready_at_s <= now_s or self._stopping:
                ready.append(name)
            else:
                wait_s = min(wait_s, ready_at_s - now_s)
        return ready, 0.0 if ready else wait_s

    def _step(self, name: str) -> None:
        model = self._models[name]
        self._settle_before(model)
        started_s = time.monotonic()
        try:
            result = model.step(started_s, max_step_s=self._policy.max_step_s(name))
        except Exception as error:
            logger.exception("a step of model %s failed", name)
            self._fail(model, error, started_s=started_s)
            return
        ended_s = self._last_work_s = time.monotonic()
        seconds = ended_s - started_s
        self._charge(model, seconds)
        model.account(result, seconds=seconds, now_s=ended_s)
        if self._record is not None:
            # Without a report it only read what a step before it had begun.
            shape = NOTHING if result.report is None else result.report.shape
            self._record.add(name, shape, started_s=started_s, seconds=seconds)
        self._give_out(result)

    def _settle_before(self, model: HostedModel) -> None:
        """Charge the model that stepped last for what the device still does for it.

        A GPU works ahead: the next model's step would be the one that waits for it, and pays.
        """
        last, self._last = self._last, model
        if last is None or last is model:
            return
        started_s = time.monotonic()
        try:
            if not last.settle(started_s):
                return
        except Exception as error:
            logger.exception("a step of model %s failed", last.name)
            self._fail(last, error, started_s=started_s)
            return
        seconds = time.monotonic() - started_s
        self._charge(last, seconds)
        last.account_settled(seconds=seconds)
        if self._record is not None:
            self._record.add(last.name, NOTHING, started_s=started_s, seconds=seconds)

    def _fail(self, model: HostedModel, error: Exception, *, started_s: float) -> None:
        seconds = time.monotonic() - started_s
        self._charge(model, seconds)
        message = f"an engine step of model {model.name!r} failed: {type(error).__name__}"
        for request_id in model.fail(seconds=seconds):
            self._owners.pop(request_id, None)
            self._send(Failed(request_id, "engine_fault", message))

    def _charge(self, model: HostedModel, seconds: float) -> None:
        self._policy.charge(model.name, seconds)
        self._busy.stepped(seconds)

    def _give_out(self, result: StepResult) -> None:
        """Send a step's tokens in one frame, and everything else by itself."""
        deltas: list[TokenDelta] = []
        others: list[Encoded | Failed] = []
        for output in result.outputs:
            if not isinstance(output, TokenDelta):
                self._owners.pop(output.id, None)
                others.append(output)
                continue
            deltas.append(output)
            if output.finish_reason is not None:
                self._owners.pop(output.id, None)
        for other in others:
            self._send(other)
        if deltas:
            self._send(StepOutput(deltas))

    def _take_commands(self, *, wait_s: float) -> bool:
        """Apply every queued command; return False when the platform has gone."""
        try:
            if wait_s > 0 and not self._stopping:
                command = self._commands.get(timeout=wait_s)
            else:
                command = self._commands.get_nowait()
            while True:
                if command is None:
                    return False
                self._apply(command)
                command = self._commands.get_nowait()
        except Empty:
            return True

    def _apply(self, command: Command | AdapterRead | ModelRead) -> None:
        self._last_work_s = time.monotonic()
        match command:
            case Generate(requests):
                for request in requests:
                    self._add(request)
            case Encode(request):
                self._add(request)
            case Abort(ids):
                for request_id in ids:
                    model = self._owners.pop(request_id, None)
                    if model is not None:
                        model.engine.abort(request_id)
            case Configure():
                self._configure(command)
            case LoadAdapter() | DropAdapter():
                self._change_adapters(command)
            case AdapterRead():
                self._adapters.install(command)
            case ModelRead():
                self._put_in_place(command)
            case Stop():
                self._stopping = True

    def _add(self, request: Request) -> None:
        model = self._models.get(request.model)
        if model is None:
            message = f"model {request.model!r} is not loaded in this worker"
            self._send(Failed(request.id, "model_unavailable", message))
            return
        now_s = time.monotonic()
        if self._residents is not None:
            refusal = self._residents.admit(model.name, request_id=request.id, now_s=now_s)
            if refusal is not None:
                self._send(refusal)
                return
        try:
            model.add(request, now_s=now_s)
        except DeepseekError as error:
            self._send(Failed(request.id, error.code, error.message, error.param))
            return
        self._owners[request.id] = model

    def _change_adapters(self, command: LoadAdapter | DropAdapter) -> None:
        residents = self._residents
        if residents is not None and residents.holds_back(command, now_s=time.monotonic()):
            return
        if isinstance(command, LoadAdapter):
            self._adapters.load(command)
        else:
            self._adapters.drop(command)

    def _put_in_place(self, read: ModelRead) -> None:
        if self._residents is None:
            return
        for failed in self._residents.put_in_place(read, now_s=time.monotonic()):
            self._owners.pop(failed.id, None)
            self._send(failed)

    def _configure(self, command: Configure) -> None:
        """Take new QoS for all models that are named, or for none of them."""
        try:
            self._reconfigure(command.qos)
        except DeepseekError as error:
            self._send(Failed(command.id, error.code, error.message, error.param))
        else:
            self._send(Done(command.id))

    def _reconfigure(self, qos: Mapping[str, QoS]) -> None:
        if unknown := qos.keys() - self._models.keys():
            raise ConfigurationError(f"this worker has no model {', '.join(sorted(unknown))}")
        for new in qos.values():
            check_batching_policy(new.policy)
        self._policy.reconfigure(
            {name: qos.get(name, model.qos) for name, model in self._models.items()}
        )
        for name, new in qos.items():
            self._models[name].reconfigure(new)

    def _report(self) -> None:
        now_s = time.monotonic()
        if now_s < self._next_report_s:
            return
        self._next_report_s = now_s + self._interval_s
        device = replace(self._sensor.latest(now_s), loop_utilization=self._busy.read(now_s))
        loads = [model.load(now_s) for model in self._models.values()]
        decisions = [
            decision
            for load in loads
            for decision in self._models[load.model].adjust(load, device, now_s=now_s)
        ]
        if self._residents is not None:
            loads = [self._residents.described(load) for load in loads]
            decisions += self._residents.take_decisions()
        snapshot = LoadSnapshot(
            uptime_s=now_s - self._started_s,
            rss_bytes=resident_bytes(),
            models=loads,
            device=device,
        )
        self._send(Load(snapshot, decisions))
