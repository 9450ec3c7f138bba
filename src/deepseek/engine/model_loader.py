"""Builds engines in a thread of its own while the step loop runs the others, and takes them apart.

One task at a time, in the order of asking: the memory of an engine that goes is free before the
next one takes it.
"""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from deepseek.core.wire import ModelInfo, ModelSpec
from deepseek.engine.base import Engine
from deepseek.engine.load_pace import LoadPace
from deepseek.engine.memory import give_back_memory

_NICE = 5
"""Priority below the step loop's: beside busy steps the thread gets a quarter of a processor that
they share. Somebody may be waiting for what it loads, so no less."""

LoadModel = Callable[[ModelSpec, LoadPace], tuple[Engine, ModelInfo]]
"""Loads one model; raises errors of `core.errors`, `OSError` and `LoadCancelled`."""


@dataclass(frozen=True, slots=True)
class ModelRead:
    """What has become of a load, to be put in place by the loop."""

    model: str
    outcome: Future[tuple[Engine, ModelInfo]]


class ModelLoader:
    """Told by the step loop's thread what to load; answers by `put`."""

    def __init__(self, load: LoadModel, *, put: Callable[[ModelRead], None]) -> None:
        """`put` returns what was loaded to the loop."""
        self._load = load
        self._put = put
        self._thread = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="models", initializer=_step_back
        )
        self._pace: LoadPace | None = None

    def begin(self, model: ModelSpec, pace: LoadPace) -> None:
        """Load a model."""
        self._pace = pace
        loading = self._thread.submit(self._load, model, pace)
        loading.add_done_callback(lambda done: self._put(ModelRead(model.name, done)))

    def take_apart(self, engine: Engine) -> None:
        """Give back the memory of an engine that nobody uses any more."""
        self._thread.submit(_take_apart, engine)

    def close(self) -> None:
        """Load nothing more."""
        if self._pace is not None:
            self._pace.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)


def _take_apart(engine: Engine) -> None:
    engine.close()
    give_back_memory()


def _step_back() -> None:
    """Lower the thread's priority. Only Linux has one for each thread; threads begun later by this
    one, those that compute for it, inherit it.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
