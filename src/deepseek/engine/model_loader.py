"""Builds engines in a thread of its own while the step loop runs the others; moves them, too.

One task at a time, in the order of asking: the memory of an engine that goes is free before the
next one takes it.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import msgspec

from deepseek.core.wire import ModelInfo, ModelSpec
from deepseek.engine.base import Engine, Parkable
from deepseek.engine.load_pace import LoadPace
from deepseek.engine.memory import give_back_memory

logger = logging.getLogger(__name__)

_NICE = 5
"""Priority below the step loop's: beside busy steps the thread gets a quarter of a processor that
they share. Somebody may be waiting for what it loads, so no less."""

Loaded = tuple[Engine, ModelInfo]


class LoadModel(Protocol):
    """Loads one model; raises errors of `core.errors`, `OSError` and `LoadCancelled`."""

    def __call__(self, model: ModelSpec, pace: LoadPace, *, keeps_host_copy: bool) -> Loaded:
        """Return the engine; with a copy of its weights in the host's memory, where it has that."""
        ...


@dataclass(frozen=True, slots=True)
class ModelRead:
    """What has become of a load, to be put in place by the loop."""

    model: str
    outcome: Future[Loaded]


class ModelLoader:
    """Told by the step loop's thread what to load; answers by `put`."""

    def __init__(
        self,
        load: LoadModel,
        *,
        put: Callable[[ModelRead], None],
        beside_steps: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`put` returns what was loaded to the loop.

        `beside_steps` surrounds what the thread has the device do; all of it is done at its end.
        """
        self._load = load
        self._put = put
        self._beside_steps = beside_steps
        self._thread = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="models", initializer=_step_back
        )
        self._pace: LoadPace | None = None

    def begin(self, model: ModelSpec, pace: LoadPace, *, keeps_host_copy: bool = False) -> None:
        """Load a model from its files to the device."""

        def load() -> Loaded:
            with self._beside_steps():
                return self._load(model, pace, keeps_host_copy=keeps_host_copy)

        self._submit(model.name, pace, load)

    def begin_parked(self, model: ModelSpec, pace: LoadPace) -> None:
        """Load a model from its files to the host tier, by way of the device."""

        def load() -> Loaded:
            with self._beside_steps():
                engine, info = self._load(model, pace, keeps_host_copy=True)
            if not isinstance(engine, Parkable):
                raise TypeError(f"the engine of model {model.name!r} cannot be parked")
            engine.park()
            return engine, info

        self._submit(model.name, pace, load)

    def wake(self, engine: Parkable, info: ModelInfo, pace: LoadPace) -> None:
        """Bring a parked model back to the device; it has been handed over by who asks."""

        def wake() -> Loaded:
            started_s = time.monotonic()
            with self._beside_steps():
                engine.wake(pace.advance)
            return engine, msgspec.structs.replace(info, load_s=time.monotonic() - started_s)

        self._submit(info.name, pace, wake)

    def park(self, engine: Parkable) -> None:
        """Have an engine that nobody steps any more leave the device."""
        self._thread.submit(_logged, engine.park)

    def take_apart(self, engine: Engine) -> None:
        """Give back the memory of an engine that nobody uses any more."""
        self._thread.submit(_logged, lambda: _take_apart(engine))

    def close(self) -> None:
        """Load nothing more."""
        if self._pace is not None:
            self._pace.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _submit(self, model: str, pace: LoadPace, load: Callable[[], Loaded]) -> None:
        self._pace = pace
        loading = self._thread.submit(load)
        loading.add_done_callback(lambda done: self._put(ModelRead(model, done)))


def _take_apart(engine: Engine) -> None:
    engine.close()
    give_back_memory()


def _logged(task: Callable[[], None]) -> None:
    """Do what nobody waits for the outcome of."""
    try:
        task()
    except Exception:  # the thread has more to do, and the next load will say what is wrong
        logger.exception("a model could not leave")


def _step_back() -> None:
    """Lower the thread's priority. Only Linux has one for each thread; threads begun later by this
    one, those that compute for it, inherit it.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
