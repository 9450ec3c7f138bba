"""Which LoRA adapters a worker's models have, and where new ones may come from."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deepseek.core.errors import AdapterRejected
from deepseek.core.residency import Residency
from deepseek.core.wire import AdapterSpec, ModelInfo, ModelSpec, WorkerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedAdapter:
    """One adapter as its model's deployment shows it."""

    spec: AdapterSpec
    created: int
    """Unix time at which it was loaded; of one in the deployment file, when the platform began."""
    error: str | None = None
    """Why the worker that runs now could not load it."""

    @property
    def fault(self) -> str:
        """Why it cannot answer, in words for a person; empty when it can."""
        return f"adapter {self.spec.name!r} could not be loaded: {self.error}" if self.error else ""


class AdapterRoster:
    """The adapters that each model of a worker is to have, whichever process the worker is.

    What was loaded or dropped while a worker ran holds for its successors too.
    """

    def __init__(self, models: Iterable[ModelSpec]) -> None:
        """Begin with the adapters of the deployment file."""
        now = int(time.time())
        self._of_model = {
            model.name: {
                spec.name: ServedAdapter(spec=spec, created=now) for spec in model.adapters
            }
            for model in models
        }

    def of(self, model: str) -> Mapping[str, ServedAdapter]:
        """Return a model's adapters by name."""
        return self._of_model[model]

    def applied_to(self, spec: WorkerSpec) -> WorkerSpec:
        """Return what the next worker is to load."""
        models = [
            msgspec.structs.replace(model, adapters=[a.spec for a in self.of(model.name).values()])
            for model in spec.models
        ]
        return msgspec.structs.replace(spec, models=models)

    def worker_started(self, models: Iterable[ModelInfo]) -> None:
        """Note what a new worker says of the adapters it was given."""
        for model in models:
            if model.residency is not Residency.DISK:
                self.model_loaded(model)

    def model_loaded(self, model: ModelInfo) -> None:
        """Note what a worker says of the adapters of a model that it has loaded; silence is a
        fault.
        """
        errors = {info.name: info.error for info in model.adapters}
        adapters = self._of_model[model.name]
        for name, adapter in adapters.items():
            adapters[name] = ServedAdapter(
                spec=adapter.spec,
                created=adapter.created,
                error=errors.get(name, "the model's engine takes no adapters"),
            )

    def loaded(self, model: str, spec: AdapterSpec) -> None:
        """Note an adapter that the worker has loaded."""
        self._of_model[model][spec.name] = ServedAdapter(spec=spec, created=int(time.time()))

    def dropped(self, model: str, name: str) -> None:
        """Note an adapter that the worker has dropped."""
        self._of_model[model].pop(name, None)


def find_below(path: str, directories: Sequence[Path]) -> Path:
    """Return the directory that `path` names, below one of `directories`; links are followed first.

    Raises `AdapterRejected`, in the same words whether the place exists outside or nowhere, so that
    nobody can explore the disk.
    """
    for directory in directories:
        try:
            found = (directory / path).resolve(strict=True)
            allowed = directory.resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            continue  # not there, no name for a file (a NUL byte), links in a circle
        if found.is_relative_to(allowed) and found.is_dir():
            return found
    raise AdapterRejected(
        "lora_path: no such directory below those that models.NAME.adapter_dirs allows",
        param="lora_path",
    )
