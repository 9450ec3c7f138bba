"""Loads a model from its prepared weights where there are some, and prepares them where not.

Writing happens beside the steps, in a thread of low priority that begins a moment after the load
and ends when the model leaves. Whatever goes wrong with a file costs a warning and an ordinary
load: nothing that is served depends on it.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self, TypeVar

import torch

from deepseek import __version__
from deepseek.core.errors import CorruptWeights, DeepseekError
from deepseek.core.requests import Task
from deepseek.core.wire import ModelSpec, WorkerSpec
from deepseek.engine.linear import PreparedLayer, prepared_layer_class
from deepseek.engine.load_pace import LoadPace
from deepseek.engine.models.encoder import is_packed
from deepseek.engine.models.preparation import Preparation, ReadAnew
from deepseek.engine.prepared_model import MappedPreparation, RecordedPreparation
from deepseek.weights.model_directory import ModelDirectory
from deepseek.weights.prepared.identity import prepared_key, weights_identity
from deepseek.weights.prepared.prepared_file import Origin, WritingStopped
from deepseek.weights.prepared.shelf import PreparedShelf
from deepseek.weights.storage import in_mib
from deepseek.weights.store.reader import Verify

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NICE = 10
"""Below the step loop's and the loader's: writing costs a tenth of a processor that they share."""
_DELAY_S = 0.25
"""Whom the load was for goes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedWeights:
    """One model's prepared weights: where they are, and how they are laid out."""

    shelf: PreparedShelf
    key: str
    origin: Origin
    layer_class: type[PreparedLayer]
    verify: Verify
    """When the file's data is compared with its digest."""
    budget_bytes: int
    is_written: bool
    """Whether a file is made where there is none."""

    @classmethod
    def of(
        cls,
        model: ModelSpec,
        spec: WorkerSpec,
        directory: ModelDirectory,
        *,
        dtype: torch.dtype,
        device: str,
    ) -> Self | None:
        """Return those of a model; None where it has none.

        That is: on a GPU, with layers in opaque layouts, of sealed weights, in transformers' own
        code, and where the pool does not want any.
        """
        if spec.prepared_dir is None or not spec.prepared_bytes:
            return None
        if model.task is not Task.GENERATE and not is_packed(directory):
            return None
        layer_class = prepared_layer_class(model.quantization, dtype=dtype, device=device)
        identity = weights_identity(directory)
        if layer_class is None or identity is None:
            return None
        choices = {
            "platform": __version__,
            "byte order": sys.byteorder,
            "dtype": str(dtype),
            "quantization": str(model.quantization),
            "head": str(model.speculation == "mtp"),
            "layout": layer_class.layout,
        }
        return cls(
            shelf=PreparedShelf(Path(spec.prepared_dir)),
            key=prepared_key(identity, choices),
            origin=Origin(model=str(directory.path.resolve()), identity=identity),
            layer_class=layer_class,
            verify=Verify(model.verify),
            budget_bytes=spec.prepared_bytes,
            is_written=model.min_resident == 0,  # what stays is not loaded again
        )

    def load(
        self, build: Callable[[Preparation], T], *, pace: LoadPace | None
    ) -> tuple[T, "Writing | None"]:
        """Return what `build` makes, from the file where that is possible.

        `build` is called a second time where the file turns out to be of no use. The writing, where
        there is one, has to be begun. Raises what `build` raises.
        """
        mapped = self._mapped(pace)
        if mapped is not None:
            try:
                return build(mapped), None
            except CorruptWeights as error:
                self.shelf.remove(self.key)
                logger.warning("%s; the model is loaded from its own files", error.message)
        if not self.is_written:
            return build(ReadAnew()), None
        record = RecordedPreparation()
        return build(record), Writing(self, record)

    def _mapped(self, pace: LoadPace | None) -> MappedPreparation | None:
        try:
            file = self.shelf.find(self.key)
            if file is None:
                return None
            return MappedPreparation(file, self.layer_class, verify=self.verify, pace=pace)
        except (CorruptWeights, OSError) as error:
            self.shelf.remove(self.key)
            logger.warning("%s; the model is loaded from its own files", error)
            return None


class Writing:
    """Writes a file while its model serves."""

    def __init__(self, weights: PreparedWeights, record: RecordedPreparation) -> None:
        self._weights = weights
        self._record: RecordedPreparation | None = record
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prepared weights", daemon=True)

    def begin(self) -> None:
        """Write, in a moment, in a thread of its own."""
        self._thread.start()

    @property
    def is_under_way(self) -> bool:
        """Whether it has begun and not ended."""
        return self._record is not None and self._thread.is_alive()

    def close(self) -> None:
        """Write no more, and let the weights go after the block that is being written.

        A file that is not complete is removed.
        """
        self._ended.set()
        self._record = None

    def _run(self) -> None:
        _step_back()
        if self._ended.wait(_DELAY_S):
            return
        weights, record = self._weights, self._record
        if record is None:
            return
        try:
            tensors = record.stored()
            is_there = weights.shelf.add(
                weights.key,
                tensors,
                origin=weights.origin,
                about=record.about(),
                budget_bytes=weights.budget_bytes,
                is_wanted=lambda: not self._ended.is_set(),
            )
        except WritingStopped:
            return
        except (DeepseekError, OSError) as error:
            _warn_once(str(error))
            return
        finally:
            self._record = None
        if is_there:
            num_bytes = sum(tensor.data.nbytes for tensor in tensors.values())
            logger.info("prepared weights of %s: %s", weights.origin.model, in_mib(num_bytes))


@cache
def _warn_once(message: str) -> None:
    """A full disk is one piece of news, not one a load."""
    logger.warning("loads stay as slow as they are: %s", message)


def _step_back() -> None:
    if sys.platform == "linux":  # where each thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
