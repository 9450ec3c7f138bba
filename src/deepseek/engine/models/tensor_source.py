"""Where a model's tensors come from: safetensors files, or chunks of a store.

Everything above sees named tensors and does not know the difference.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from deepseek.core.errors import CorruptWeights, UnsupportedModel
from deepseek.weights.store.first_use import in_first_use_order
from deepseek.weights.store.manifest import has_manifest
from deepseek.weights.store.reader import DEFAULT_READING, ModelReader, Reading, Verify, open_model

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16,
    "I32": torch.int32, "I64": torch.int64, "U16": torch.uint16, "U32": torch.uint32,
    "U64": torch.uint64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32,
    "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


class TensorSource(Protocol):
    """Named tensors as they are stored, in memory of the CPU."""

    order: Sequence[str]
    """The names, as a forward pass first meets them."""
    is_lasting: bool
    """Whether a tensor may be kept as it is. Else keep a copy: it holds more than itself."""

    def __contains__(self, name: str) -> bool: ...

    def dtype(self, name: str) -> str:
        """Return a tensor's number format as safetensors spells it; reads no data."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; reads no data."""
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor; raises `CorruptWeights` or `UnsupportedModel`.

        It may be a view of memory that others see too: never write to it.
        """
        ...


def open_source(path: Path, reading: Reading = DEFAULT_READING) -> TensorSource:
    """Return the tensors of a model directory: from its manifest where it has one.

    Chunks are checked and opened before this returns, as `reading` says. Raises `CorruptWeights`
    and `ConfigurationError`.
    """
    if has_manifest(path):
        return ChunkSource(open_model(path, keys=reading.keys), verify=reading.verify)
    return SafetensorsSource(path)


class SafetensorsSource:
    """Tensors of `model.safetensors`, or of the files that its index names."""

    is_lasting = False  # it would keep the file's pages in memory beside the packed weights

    def __init__(self, path: Path) -> None:
        self._files = {}
        for file in _weight_files(path):
            try:
                handle = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise CorruptWeights(f"{file}: damaged ({error}); fetch the file again") from error
            self._files.update(dict.fromkeys(handle.keys(), handle))
        self.order: Sequence[str] = in_first_use_order(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def dtype(self, name: str) -> str:
        spelling: str = self._files[name].get_slice(name).get_dtype()
        return spelling

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        value: torch.Tensor = self._files[name].get_tensor(name)
        return value


class ChunkSource:
    """Tensors of a chunk store, each a view of one mapping: no byte is copied."""

    is_lasting = True  # pages of the mapping are the page cache's, given back when memory is short

    def __init__(self, reader: ModelReader, *, verify: Verify = Verify.ONCE) -> None:
        self._places = reader.image.tensors
        self._memory = reader.map(verify=verify)
        self.order: Sequence[str] = list(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def dtype(self, name: str) -> str:
        return self._places[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    def tensor(self, name: str) -> torch.Tensor:
        place = self._places[name]
        dtype = DTYPES.get(place.dtype)
        if dtype is None:
            raise UnsupportedModel(f"tensor {name!r} is stored as {place.dtype}, which is not read")
        if not place.num_bytes:
            return torch.empty(place.shape, dtype=dtype)
        count = place.num_bytes // dtype.itemsize
        flat = torch.frombuffer(self._memory, dtype=dtype, count=count, offset=place.start)
        return flat.view(place.shape)


def _weight_files(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if index.exists():
        names = json.loads(index.read_text())["weight_map"].values()
        return [path / name for name in sorted(set(names))]
    return [path / "model.safetensors"]
