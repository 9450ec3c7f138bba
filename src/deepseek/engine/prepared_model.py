"""A model's prepared weights as the engine sees them: recorded in one load, mapped in the next.

Both are a `deepseek.engine.models.preparation.Preparation`: what a model's code asks of its
checkpoint is noted with the answer, and answered from the file when it is asked again. Layers are
kept as the kernels read them, so that loading is mapping them.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec
import torch

from deepseek.core.errors import CorruptWeights
from deepseek.engine.linear import LinearFactory, PreparedLayer
from deepseek.engine.load_pace import LoadPace
from deepseek.engine.models.preparation import LinearWeights
from deepseek.engine.models.tensor_source import DTYPES
from deepseek.weights.prepared.prepared_file import PreparedFile, StoredTensor
from deepseek.weights.store.cutting import PAGE_BYTES
from deepseek.weights.store.reader import Verify
from deepseek.weights.store.side_by_side import populate

T = TypeVar("T")

_SPELLINGS = {dtype: spelling for spelling, dtype in DTYPES.items()}


class LayerNote(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file tells of a layer beside its parts, `NAME/PART` in the file."""

    layout: str
    out_features: int
    in_features: int
    parts: tuple[str, ...]


class About(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file tells the engine of its model."""

    has: dict[str, bool]
    """Which tensors the checkpoint was asked for, and whether it has them."""
    layers: dict[str, LayerNote]


class RecordedPreparation:
    """Everything is read and made, and noted. Holds all of the model until it is let go."""

    def __init__(self) -> None:
        self._has: dict[str, bool] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._layers: dict[str, torch.nn.Module] = {}

    def has(self, name: str, look: Callable[[], bool]) -> bool:
        return self._has.setdefault(name, look())

    def tensor(self, name: str, read: Callable[[], torch.Tensor]) -> torch.Tensor:
        tensor = self._tensors[name] = read()
        return tensor

    def layer(
        self, name: str, read: Callable[[], LinearWeights], make: LinearFactory
    ) -> torch.nn.Module:
        layer = self._layers[name] = make(*read())
        return layer

    def stored(self) -> dict[str, StoredTensor]:
        """Return what is to be in the file: tensors, then layers, in the order of first use."""
        stored = {name: _stored(tensor) for name, tensor in self._tensors.items()}
        for name, layer in self._layers.items():
            for part, tensor in _prepared(layer, name).parts().items():
                stored[f"{name}/{part}"] = _stored(tensor)
        return stored

    def about(self) -> str:
        """Return what the file is to tell."""
        layers = {name: _note(_prepared(layer, name)) for name, layer in self._layers.items()}
        return msgspec.json.encode(About(has=self._has, layers=layers)).decode()


class MappedPreparation:
    """Everything is in a file, and nothing is read anew.

    A question that the file does not answer, or answers with something else than was asked for,
    raises `CorruptWeights`: no model is made of two sources.
    """

    def __init__(
        self,
        file: PreparedFile,
        layer_class: type[PreparedLayer],
        *,
        verify: Verify = Verify.ONCE,
        pace: LoadPace | None = None,
    ) -> None:
        """Map the file, checked as `verify` says; raises `CorruptWeights` and `OSError`.

        `pace` is asked before each layer is read.
        """
        self._file = file
        self._layer_class = layer_class
        self._pace = pace
        try:
            self._about = msgspec.json.decode(file.about, type=About)
        except msgspec.DecodeError as error:
            raise CorruptWeights(f"{file.path}: what it tells of itself is damaged") from error
        self._memory = file.map(verify=verify)

    def has(self, name: str, look: Callable[[], bool]) -> bool:
        return _answer(self._about.has, name, self._file)

    def tensor(self, name: str, read: Callable[[], torch.Tensor]) -> torch.Tensor:
        return self._mapped([name])[0]

    def layer(
        self, name: str, read: Callable[[], LinearWeights], make: LinearFactory
    ) -> torch.nn.Module:
        note = _answer(self._about.layers, name, self._file)
        cls = self._layer_class
        if note.layout != cls.layout:
            raise CorruptWeights(f"{self._file.path}: layer {name!r} is laid out as {note.layout}")
        tensors = self._mapped([f"{name}/{part}" for part in note.parts])
        try:
            layer = cls.from_parts(
                dict(zip(note.parts, tensors, strict=True)),
                out_features=note.out_features,
                in_features=note.in_features,
            )
        except (ValueError, KeyError) as error:
            raise CorruptWeights(f"{self._file.path}: layer {name!r}: {error}") from error
        assert isinstance(layer, torch.nn.Module)  # noqa: S101 - what `make` would have returned is
        return layer

    def _mapped(self, names: list[str]) -> list[torch.Tensor]:
        """Return neighbours in the file, read into memory when this returns."""
        entries = [_answer(self._file.tensors, name, self._file) for name in names]
        start = self._file.data_start + min((entry.start for entry in entries), default=0)
        end = self._file.data_start + max((entry.end for entry in entries), default=0)
        if self._pace is not None:
            self._pace.advance(end - start)
        page = start - start % PAGE_BYTES
        populate(self._memory, page, end - page)
        tensors: list[torch.Tensor] = []
        for name, entry in zip(names, entries, strict=True):
            dtype = DTYPES.get(entry.dtype)
            if dtype is None:
                raise CorruptWeights(f"{self._file.path}: tensor {name!r} is in {entry.dtype}")
            num_bytes = entry.end - entry.start
            if not num_bytes:
                tensors.append(torch.empty(entry.shape, dtype=dtype))
                continue
            flat = torch.frombuffer(
                self._memory,
                dtype=dtype,
                count=num_bytes // dtype.itemsize,
                offset=self._file.data_start + entry.start,
            )
            tensors.append(flat.view(entry.shape))
        return tensors


def _answer(answers: Mapping[str, T], name: str, file: PreparedFile) -> T:
    if name not in answers:
        raise CorruptWeights(f"{file.path} knows nothing of {name!r}")
    return answers[name]


def _prepared(layer: torch.nn.Module, name: str) -> PreparedLayer:
    if not isinstance(layer, PreparedLayer):
        raise TypeError(f"layer {name!r}, a {type(layer).__name__}, cannot be taken apart")
    return layer


def _note(layer: PreparedLayer) -> LayerNote:
    return LayerNote(
        layout=layer.layout,
        out_features=layer.out_features,
        in_features=layer.in_features,
        parts=tuple(layer.parts()),
    )


def _stored(tensor: torch.Tensor) -> StoredTensor:
    flat = tensor.contiguous().flatten()
    data = memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")
    return StoredTensor(dtype=_SPELLINGS[tensor.dtype], shape=tuple(tensor.shape), data=data)
