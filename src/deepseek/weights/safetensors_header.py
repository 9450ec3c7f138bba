"""Reads the header of a safetensors file and checks it against the file, without reading data.

Format: https://github.com/huggingface/safetensors#format (8 bytes little-endian header length,
JSON header, tensor data without gaps).
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from deepseek.core.errors import CorruptWeights

_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 100_000_000  # the reference implementation's limit
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor as the header describes it; `start` and `end` count from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsLayout:
    """Where a file's tensors are."""

    data_start: int
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    """What the writer has noted (`__metadata__`)."""


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Return the file's tensors by name; `CorruptWeights` where header and file disagree."""
    return read_layout(path).tensors


def read_layout(path: Path) -> SafetensorsLayout:
    """Return the tensors and where in the file their data begins; raises as `read_header`."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(_LENGTH.size)
            if len(prefix) < _LENGTH.size:
                raise _corrupt(path, f"has only {file_bytes} bytes")
            (header_bytes,) = _LENGTH.unpack(prefix)
            if header_bytes > min(_MAX_HEADER_BYTES, file_bytes - _LENGTH.size):
                raise _corrupt(path, "is cut off inside its header, or is no safetensors file")
            text = file.read(header_bytes)
    except FileNotFoundError as error:
        raise _corrupt(path, "is missing") from error
    except OSError as error:
        raise _corrupt(path, f"cannot be read ({error.strerror})") from error
    tensors, metadata = _parse(path, text)
    promised = max((tensor.end for tensor in tensors.values()), default=0)
    present = file_bytes - _LENGTH.size - header_bytes
    if promised != present:
        raise _corrupt(
            path, f"holds {present:,} bytes of tensors where its header says {promised:,}"
        )
    data_start = _LENGTH.size + header_bytes
    return SafetensorsLayout(data_start=data_start, tensors=tensors, metadata=metadata)


def _parse(path: Path, text: bytes) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    try:
        header = json.loads(text)
        metadata = {str(k): str(v) for k, v in (header.pop("__metadata__", None) or {}).items()}
        return {name: _entry(entry) for name, entry in header.items()}, metadata
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _corrupt(path, "has an unreadable header") from error


def _entry(entry: dict[str, list[int]]) -> TensorEntry:
    """Raise `ValueError` where offsets contradict shape and number format."""
    start, end = map(int, entry["data_offsets"])
    shape = tuple(int(size) for size in entry["shape"])
    dtype = str(entry["dtype"])
    item_bytes = ITEM_BYTES.get(dtype)
    if start < 0 or end < start or any(size < 0 for size in shape):
        raise ValueError("negative size")
    if item_bytes is not None and end - start != math.prod(shape) * item_bytes:
        raise ValueError("offsets contradict the shape")
    return TensorEntry(dtype=dtype, shape=shape, start=start, end=end)


def _corrupt(path: Path, fault: str) -> CorruptWeights:
    return CorruptWeights(f"{path} {fault}: the weights are damaged; fetch the model again")
