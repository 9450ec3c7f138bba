"""The plug-in point of the device worker: what the step loop asks of an engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from deepseek.core.load import ModelLoad
from deepseek.core.requests import EncodeRequest, GenerateRequest
from deepseek.core.wire import Encoded, Failed, TokenDelta

Request = GenerateRequest | EncodeRequest
Output = TokenDelta | Encoded | Failed


class Engine(Protocol):
    """One model on one device. Called from the step loop's thread only."""

    name: str

    def add(self, request: Request) -> None:
        """Queue a request; cheap, touches no device.

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

    def step(self) -> list[Output]:
        """Run one bounded piece of device work and return what it produced.

        Blocks for the length of one step. An exception means that the step's requests are lost:
        the loop then calls `fail_running` and goes on.
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
class AdapterHost(Protocol):
    """What an engine has besides where its model takes LoRA adapters.

    A request names its adapter in `GenerateRequest.adapter`; `Engine.add` raises `AdapterNotFound`
    where it is not loaded.
    """

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
