"""The plug-in point of the device worker: what the step loop asks of an engine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from deepseek.core.load import ModelLoad
from deepseek.core.qos import QoS
from deepseek.core.requests import EncodeRequest, GenerateRequest
from deepseek.core.wire import Encoded, Failed, TokenDelta
from deepseek.scheduling.batching.base import Demand, StepLimits, StepPlan, StepShape

Request = GenerateRequest | EncodeRequest
Output = TokenDelta | Encoded | Failed
BeforePiece = Callable[[int], None]
"""Told the size of a piece of weights before it is copied; may wait, and ends it all by raising."""


def at_once(num_bytes: int) -> None:
    """Let a piece be copied."""


def num_sequences(request: Request) -> int:
    """Return how many sequences a request brings: what waits and arrives is counted in them."""
    return len(request.sequences) if isinstance(request, EncodeRequest) else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What a step has been."""

    shape: StepShape
    waits_s: tuple[float, ...] = ()
    """How long those had waited whom the step began (an encoder's: sequences)."""
    found_no_memory: bool = False
    """The step was taken back for want of device memory; a smaller one follows."""


class Engine(Protocol):
    """One model on one device. Called from the step loop's thread only."""

    name: str
    last_step: StepReport | None
    """What the last `step` has been; None where it gave nothing to the device."""

    @property
    def limits(self) -> StepLimits:
        """What no step exceeds, as the device allows; smaller after it ran out of memory."""
        ...

    def expect(self, qos: QoS) -> None:
        """Give requests added from now on these deadlines."""
        ...

    def add(self, request: Request, *, now_s: float | None = None) -> None:
        """Queue a request that arrived at `now_s` (None: now); cheap, touches no device.

        Raises `InvalidRequest` (or a subclass) where the request can never be served; the engine
        is unchanged then.
        """
        ...

    def abort(self, request_id: int) -> None:
        """Forget a request and free its slot at once; unknown ids are ignored."""
        ...

    @property
    def has_work(self) -> bool:
        """True when `step` would do something."""
        ...

    def demand(self, now_s: float) -> Demand:
        """Return the queue as batching policies see it; valid until the next call of any method."""
        ...

    def step(self, plan: StepPlan | None = None) -> list[Output]:
        """Run one bounded piece of device work and return what it produced.

        Within `plan` where the engine batches itself; None: within `limits`. Blocks for the length
        of one step. An exception means that the step's requests are lost: the loop then calls
        `fail_running` and goes on.
        """
        ...

    def settle(self) -> None:
        """Wait until the device has done what `step` has given it.

        Gives nothing out: that is the next step's. Called where `demand` says that something is in
        flight and another model steps next, for what the device does meanwhile is this one's time.
        Raises as `step`.
        """
        ...

    def fail_running(self) -> list[int]:
        """Drop the requests that took part in the last step; return their ids."""
        ...

    def load(self) -> ModelLoad:
        """Return the current load; cheap."""
        ...

    def close(self) -> None:
        """Give back device memory; the engine is not used afterwards."""
        ...


@runtime_checkable
class WarmUp(Protocol):
    """What an engine has besides where its first request of some kind would wait for more."""

    def warm_up(self) -> None:
        """Do now what such a request would wait for; called while no request runs or waits.

        May block for a fraction of a second. Fails quietly, with a line in the log.
        """
        ...


@runtime_checkable
class Prepares(Protocol):
    """What an engine has besides whose weights are written in the form they are computed with."""

    @property
    def is_being_prepared(self) -> bool:
        """True until that is done, or has failed; `close` ends it."""
        ...


@runtime_checkable
class AdapterHost(Protocol):
    """What an engine has besides where its model takes LoRA adapters.

    A request names its adapter in `GenerateRequest.adapter`; `Engine.add` raises `AdapterNotFound`
    where it is not loaded.
    """

    @property
    def adapter_names(self) -> list[str]:
        """The adapters that take requests."""
        ...

    def prepare_adapter(self, name: str, path: Path) -> Callable[[], None]:
        """Read an adapter and return what puts it in place.

        Called from any thread, beside `step`: changes nothing, and may take long. What it returns
        is called from the step loop's thread; it is quick, and replaces an adapter of the same
        name, which requests that have begun keep. Both raise `AdapterRejected`; the adapters that
        are loaded stay as they are then.
        """
        ...

    def drop_adapter(self, name: str) -> None:
        """Take no new request for an adapter; its memory is given back when its last one ends.

        Raises `AdapterNotFound`.
        """
        ...


@runtime_checkable
class Parkable(Engine, Protocol):
    """An engine whose model can leave the device for the host's memory, and come back quickly.

    Whoever calls these has the engine to itself: it need not be the step loop's thread.
    """

    @property
    def can_park(self) -> bool:
        """Whether it can now: it has a copy of its weights in the host's memory."""
        ...

    def park(self) -> None:
        """Give back the device's memory, what the copy holds being kept; cached prefixes are not.

        Raises `RuntimeError` where there is work. No step may follow before `wake`.
        """
        ...

    def wake(self, before_piece: BeforePiece) -> None:
        """Come back as it was. The copy may be under way still; what this thread gives the device
        next, on the stream it uses now, waits for it.

        `before_piece` is told the size of each piece (10 MB at most) before it is copied; it may
        wait, or raise. Raises that, and `torch.OutOfMemoryError` where the device has no room: the
        model is parked still.
        """
        ...

    def drop_host_copy(self) -> None:
        """Give back the host's memory, being on the device; `can_park` is False from now on."""
        ...
