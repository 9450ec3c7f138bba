"""A supervised worker: requests in, their events out, restarts in between.

When the process dies, requests whose caller has seen nothing yet are sent again, once, to its
successor; those that have begun to stream end with `WorkerCrashed`.
"""

import asyncio
import itertools
import logging
import signal
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from deepseek.core.decisions import Decision
from deepseek.core.errors import (
    DeepseekError,
    Draining,
    ModelUnavailable,
    Unavailable,
    WorkerCrashed,
    error_from_wire,
)
from deepseek.core.load import LoadSnapshot, ModelLoad
from deepseek.core.qos import QoS
from deepseek.core.requests import EncodeRequest, GenerateRequest
from deepseek.core.residency import Residency
from deepseek.core.wire import (
    REFUSED_STATUS,
    Abort,
    AdapterSpec,
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
    ModelChanged,
    ModelInfo,
    Ready,
    StepOutput,
    Stop,
    TokenDelta,
    WorkerSpec,
)
from deepseek.serving.adapters import AdapterRoster
from deepseek.serving.kept_decisions import KeptDecisions
from deepseek.serving.worker_process import WorkerDied, WorkerLauncher, WorkerProcess

logger = logging.getLogger(__name__)

MAX_BACKOFF_S = 30.0
RETRY_AFTER_S = 5.0
"""What a caller is told to wait while a worker starts."""
DECISIONS_KEPT = 256
"""Of each model, where nothing else is said."""


class WorkerState(StrEnum):
    """Where a replica's worker is in its life."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    DOWN = "down"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """When a dead worker is started again (settings of the pool)."""

    start_timeout_s: float = 600.0
    max_restarts: int = 5
    backoff_s: float = 0.5
    stands_by: bool = False
    """Whether a process that has imported its libraries waits to follow the worker."""


_Request = GenerateRequest | EncodeRequest | LoadAdapter | DropAdapter | Configure
_Answer = TokenDelta | Encoded | Done | DeepseekError


@dataclass(slots=True, eq=False)
class _Pending:
    """A request in the worker's hands."""

    request: _Request
    inbox: asyncio.Queue[_Answer] = field(default_factory=asyncio.Queue)
    has_answered: bool = False
    was_retried: bool = False


LoadWatcher = Callable[[ModelLoad], list[Decision]]
"""Takes every load report of one model and returns what it decided on it."""

Observer = Callable[[str, WorkerState | LoadSnapshot], None]
"""Told of every change of state and every load report, with the pool's name."""


class Replica:
    """One worker with its models; lives in the platform's event loop."""

    def __init__(
        self,
        spec: WorkerSpec,
        policy: RestartPolicy,
        *,
        observer: Observer | None = None,
        decisions_kept: Mapping[str, int] | None = None,
    ) -> None:
        """`decisions_kept`: how many of each model's last decisions to keep."""
        self._spec = spec
        self._policy = policy
        self._observer = observer
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._launcher = WorkerLauncher(spec.python, stands_by=policy.stands_by)
        self._standing_by: asyncio.Task[None] | None = None
        self._worker: WorkerProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._first_ready: asyncio.Future[None] | None = None
        self._models: dict[str, ModelInfo] = {}
        self._num_crashes = 0
        self._watchers: dict[str, LoadWatcher] = {}
        self.adapters = AdapterRoster(spec.models)
        self.decisions = KeptDecisions(
            decisions_kept or {model.name: DECISIONS_KEPT for model in spec.models}
        )
        self.idle = asyncio.Event()
        """Set while no request is pending."""
        self.idle.set()
        self.state = WorkerState.STARTING
        self.reason = "the worker is starting"
        self.snapshot: LoadSnapshot | None = None

    @property
    def pool(self) -> str:
        return self._spec.pool

    @property
    def pid(self) -> int | None:
        """The worker's process id, while there is one."""
        return None if self._worker is None else self._worker.pid

    @property
    def standby_pid(self) -> int | None:
        """The process that would follow the worker, where one stands by."""
        return self._launcher.standby_pid

    @property
    def qos(self) -> dict[str, QoS]:
        """What the worker, and any successor, is told of its models."""
        return {model.name: model.qos for model in self._spec.models}

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    def model(self, name: str) -> ModelInfo | None:
        """Return what the worker last said of a model."""
        return self._models.get(name)

    def watch(self, name: str, watcher: LoadWatcher) -> None:
        """Have a model's load reports shown to `watcher`, and what it decides kept with the rest.

        It must not raise, nor block.
        """
        self._watchers[name] = watcher

    def residency(self, name: str) -> Residency | None:
        """Return where a model is; None while there is no worker that could have it."""
        if self.state is not WorkerState.READY:
            return None
        return self._models[name].residency

    async def start(self) -> None:
        """Start the worker and wait until it has the models that are to be there at the start.

        Raises `Unavailable` where it cannot be started within the policy's patience, or says that
        it cannot work as it is set up.
        """
        self._first_ready = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(), name=f"pool {self.pool}")
        await self._first_ready

    async def stop(self, *, grace_s: float) -> None:
        """End the worker; it gets `grace_s` to finish its step. Pending requests fail."""
        self._set_state(WorkerState.STOPPED, "the platform is shutting down")
        if self._worker is not None:
            self._worker.send(Stop())
            await self._worker.end(grace_s=grace_s)
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor
        if self._standing_by is not None:
            await self._standing_by
        await self._launcher.close()
        self._fail_all(Draining("the platform is shutting down"))

    def next_id(self) -> int:
        """Return a request id that is unique for this replica."""
        return next(self._ids)

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[TokenDelta, None]:
        """Yield a generation's deltas; closing the iterator aborts it in the worker."""
        pending = self._submit(request)
        try:
            while True:
                item = await pending.inbox.get()
                if isinstance(item, DeepseekError):
                    raise item
                if isinstance(item, TokenDelta):
                    yield item
                    if item.finish_reason is not None:
                        return
        finally:
            self._withdraw(request.id)

    async def encode(self, request: EncodeRequest) -> Encoded:
        """Return an encoding; cancelling the await aborts it in the worker."""
        pending = self._submit(request)
        try:
            item = await pending.inbox.get()
        finally:
            self._withdraw(request.id)
        if isinstance(item, DeepseekError):
            raise item
        if not isinstance(item, Encoded):
            raise TypeError(f"the worker answered an encoding with {type(item).__name__}")
        return item

    async def load_adapter(self, model: str, spec: AdapterSpec) -> None:
        """Have the worker load an adapter, in place of one of the same name, and keep it loaded.

        To be called for one name at a time, and not to be cancelled: the worker carries it out.
        """
        await self._carry_out(
            LoadAdapter(id=self.next_id(), model=model, name=spec.name, path=spec.path)
        )
        self.adapters.loaded(model, spec)

    async def drop_adapter(self, model: str, name: str) -> None:
        """Have the worker drop an adapter; see `load_adapter`."""
        await self._carry_out(DropAdapter(id=self.next_id(), model=model, name=name))
        self.adapters.dropped(model, name)

    def begin_with(self, qos: Mapping[str, QoS]) -> None:
        """Have the next worker begin with other QoS of these models; this one is told nothing."""
        models = [
            msgspec.structs.replace(model, qos=qos.get(model.name, model.qos))
            for model in self._spec.models
        ]
        self._spec = msgspec.structs.replace(self._spec, models=models)

    async def reconfigure(self, qos: Mapping[str, QoS]) -> None:
        """Have the worker take other QoS of these models, and its successors begin with them.

        Raises `Unavailable` or what the worker refuses with; nothing has changed then. Not to be
        cancelled: the worker carries it out.
        """
        self.check_ready()
        before = self.qos
        # First, so that a worker that dies meanwhile has a successor with the new settings.
        self.begin_with(qos)
        loaded = {name: new for name, new in qos.items() if self._models[name].error is None}
        try:
            if loaded:
                await self._carry_out(Configure(id=self.next_id(), qos=loaded))
        except DeepseekError:
            self.begin_with(before)
            raise

    # requests

    async def _carry_out(self, command: LoadAdapter | DropAdapter | Configure) -> None:
        pending = self._submit(command)
        item = await pending.inbox.get()
        if isinstance(item, DeepseekError):
            raise item

    def check_ready(self) -> None:
        """Raise `Unavailable` while there is no worker that answers."""
        if self.state is not WorkerState.READY:
            raise Unavailable(f"pool {self.pool!r}: {self.reason}", retry_after_s=RETRY_AFTER_S)

    def check(self, model: str) -> ModelInfo:
        """Return the model's info; raises `Unavailable` or `ModelUnavailable`."""
        if self.state is not WorkerState.READY:
            raise Unavailable(f"model {model!r}: {self.reason}", retry_after_s=RETRY_AFTER_S)
        info = self._models[model]
        if info.error is not None:
            raise ModelUnavailable(f"model {model!r} could not be loaded: {info.error}")
        return info

    def _submit(self, request: _Request) -> _Pending:
        if not isinstance(request, Configure):
            self.check(request.model)
        pending = _Pending(request)
        self._pending[request.id] = pending
        self.idle.clear()
        self._send(request)
        return pending

    def _send(self, request: _Request) -> None:
        if self._worker is None:
            return
        match request:
            case GenerateRequest():
                self._worker.send(Generate([request]))
            case EncodeRequest():
                self._worker.send(Encode(request))
            case LoadAdapter() | DropAdapter() | Configure():
                self._worker.send(request)

    def _withdraw(self, request_id: int) -> None:
        """Forget a request; one that is not finished is aborted in the worker."""
        if self._forget(request_id) and self._worker is not None:
            self._worker.send(Abort([request_id]))

    # supervision

    async def _supervise(self) -> None:
        while True:
            worker, status = await self._start_once(), None
            if worker is not None:
                await self._serve(worker)
                status = await self._after_death(worker)
            if self.state is WorkerState.STOPPED:
                return
            if status == REFUSED_STATUS and self._is_first_start:
                self._give_up("its worker cannot work as it is set up; its log says why")
                return
            self._num_crashes += 1
            if self._num_crashes > self._policy.max_restarts:
                self._give_up(
                    f"its worker died {self._num_crashes} times in a row; last: {self.reason}"
                )
                return
            delay_s = min(self._policy.backoff_s * 2 ** (self._num_crashes - 2), MAX_BACKOFF_S)
            await asyncio.sleep(delay_s if self._num_crashes > 1 else 0)

    async def _start_once(self) -> WorkerProcess | None:
        try:
            return await self._launcher.launch(self.adapters.applied_to(self._spec))
        except WorkerDied as error:
            logger.error("pool %s: %s", self.pool, error)
            self.reason = str(error)
            return None

    async def _serve(self, worker: WorkerProcess) -> None:
        """Handle a worker's events until it is gone."""
        self._worker = worker
        watchdog = asyncio.get_running_loop().call_later(
            self._policy.start_timeout_s, self._kill_if_starting, worker.pid
        )
        try:
            async for event in worker.events():
                self._handle(event)
        finally:
            watchdog.cancel()
            self._worker = None

    @property
    def _is_first_start(self) -> bool:
        """True until a worker has been ready: later, a device may only be away for a while."""
        return self._first_ready is not None and not self._first_ready.done()

    async def _after_death(self, worker: WorkerProcess) -> int:
        """See to what the worker has left behind; return its exit status."""
        status = await worker.end()
        cause = signal.Signals(-status).name if status < 0 else f"status {status}"
        if self.state is WorkerState.STOPPED:
            return status
        logger.error("pool %s: worker %d died (%s); restarting it", self.pool, worker.pid, cause)
        self._set_state(WorkerState.RESTARTING, f"its worker died ({cause}) and is restarting")
        crashed = f"the worker died ({cause}) while it held the request"
        for request_id, pending in list(self._pending.items()):
            if pending.has_answered or pending.was_retried:
                self._deliver(request_id, WorkerCrashed(crashed, retry_after_s=RETRY_AFTER_S))
            else:
                pending.was_retried = True
        return status

    def _give_up(self, reason: str) -> None:
        logger.error("pool %s stays down: %s", self.pool, reason)
        self._set_state(WorkerState.DOWN, reason)
        self._fail_all(WorkerCrashed(reason, retry_after_s=MAX_BACKOFF_S))
        if self._first_ready is not None and not self._first_ready.done():
            self._first_ready.set_exception(Unavailable(f"pool {self.pool!r}: {reason}"))

    def _kill_if_starting(self, pid: int) -> None:
        worker = self._worker
        if worker is not None and worker.pid == pid and self.state is not WorkerState.READY:
            logger.error(
                "pool %s: worker %d did not load its models within start_timeout_s=%s",
                self.pool, pid, self._policy.start_timeout_s,
            )  # fmt: skip
            asyncio.get_running_loop().create_task(worker.end())

    def _handle(self, event: Event) -> None:
        match event:
            case StepOutput(deltas):
                self._num_crashes = 0
                for delta in deltas:
                    self._deliver(delta.id, delta)
            case Encoded():
                self._num_crashes = 0
                self._deliver(event.id, event)
            case Done(request_id):
                self._deliver(request_id, event)
            case Failed(request_id, code, message, param, retry_after_s):
                error = error_from_wire(code, message, param=param, retry_after_s=retry_after_s)
                self._deliver(request_id, error)
            case Load(snapshot, decisions):
                self.snapshot = snapshot
                self.decisions.add([*decisions, *self._watch(snapshot)])
                if self._observer is not None:
                    self._observer(self.pool, snapshot)
            case ModelChanged(model):
                self._models[model.name] = model
                if model.residency is Residency.READY:
                    self.adapters.model_loaded(model)
            case Ready(_, models):
                self._begin_to_serve(models)

    def _watch(self, snapshot: LoadSnapshot) -> list[Decision]:
        return [
            decision
            for load in snapshot.models
            if (watcher := self._watchers.get(load.model)) is not None
            for decision in watcher(load)
        ]

    def _begin_to_serve(self, models: list[ModelInfo]) -> None:
        self._models = {info.name: info for info in models}
        self.adapters.worker_started(models)
        self._set_state(WorkerState.READY, "")
        for pending in self._pending.values():
            self._send(pending.request)
        if self._first_ready is not None and not self._first_ready.done():
            self._first_ready.set_result(None)
        self._standing_by = asyncio.create_task(self._launcher.stand_by())

    def _deliver(self, request_id: int, item: _Answer) -> None:
        """Hand an item over; late items of withdrawn requests are dropped."""
        pending = self._pending.get(request_id)
        if pending is None:
            return
        pending.has_answered = True
        pending.inbox.put_nowait(item)
        if not isinstance(item, TokenDelta) or item.finish_reason is not None:
            self._forget(request_id)

    def _forget(self, request_id: int) -> bool:
        known = self._pending.pop(request_id, None) is not None
        if not self._pending:
            self.idle.set()
        return known

    def _fail_all(self, error: DeepseekError) -> None:
        for request_id in list(self._pending):
            self._deliver(request_id, error)

    def _set_state(self, state: WorkerState, reason: str) -> None:
        self.state, self.reason = state, reason
        if self._observer is not None:
            self._observer(self.pool, state)
