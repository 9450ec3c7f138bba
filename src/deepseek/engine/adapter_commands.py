"""Loads and drops LoRA adapters while the step loop runs."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from deepseek.core.errors import (
    AdapterNotFound,
    AdapterRejected,
    DeepseekError,
    EngineFault,
    ModelUnavailable,
)
from deepseek.core.wire import Done, DropAdapter, Event, Failed, LoadAdapter
from deepseek.engine.base import AdapterHost
from deepseek.engine.hosted_model import HostedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdapterRead:
    """What has become of reading an adapter in a thread, to be put in place by the loop."""

    command: LoadAdapter
    """What asked for it."""
    install: Future[Callable[[], None]]


class AdapterCommands:
    """Carries out commands in the loop's thread, reading files in one of its own."""

    def __init__(
        self,
        models: Mapping[str, HostedModel],
        *,
        put: Callable[[AdapterRead], None],
        send: Callable[[Event], None],
    ) -> None:
        """`put` returns what was read to the loop, which gives it to `install`."""
        self._models = models
        self._put = put
        self._send = send
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapters")

    def load(self, command: LoadAdapter) -> None:
        """Read in a thread, so that running streams do not wait for a disk."""

        def read() -> Callable[[], None]:
            return self._host(command.model).prepare_adapter(command.name, Path(command.path))

        if command.model in self._models:
            self._models[command.model].num_readers += 1
        reading = self._reader.submit(read)
        reading.add_done_callback(lambda done: self._put(AdapterRead(command, done)))

    def install(self, read: AdapterRead) -> None:
        """Put in place what was read, or say why it could not be."""
        command = read.command

        def install() -> None:
            read.install.result()()
            self._models[command.model].adapters[command.name] = command.path

        if command.model in self._models:
            self._models[command.model].num_readers -= 1
        self._carry_out(command.id, install)

    def drop(self, command: DropAdapter) -> None:
        """Take no new request for an adapter; also where its model is not there to be asked."""

        def drop() -> None:
            model = self._models.get(command.model)
            if model is None or model.is_resident:
                self._host(command.model).drop_adapter(command.name)
            elif command.name not in model.adapters:
                raise AdapterNotFound(f"adapter {command.name!r} is not loaded")
            if model is not None:
                model.adapters.pop(command.name, None)

        self._carry_out(command.id, drop)

    def close(self) -> None:
        """Read nothing more."""
        self._reader.shutdown(wait=False, cancel_futures=True)

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
            self._send(Done(command_id))

    def _host(self, model: str) -> AdapterHost:
        hosted = self._models.get(model)
        if hosted is None:
            raise ModelUnavailable(f"model {model!r} is not loaded in this worker")
        if not isinstance(hosted.engine, AdapterHost):
            raise AdapterRejected(f"model {model!r} takes no adapters")
        return hosted.engine
