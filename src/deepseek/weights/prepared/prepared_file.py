"""The file of one model's prepared weights: safetensors, laid out to be mapped.

Any reader of safetensors can read it. Besides, data begins at a page, every tensor at a multiple of
64 bytes (`pad.N` in between), and `__metadata__` says what the file belongs to: see
`docs/prepared-weights.md`.
"""

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import msgspec
from blake3 import blake3

from deepseek.core.errors import CorruptWeights
from deepseek.weights.safetensors_header import TensorEntry, read_layout
from deepseek.weights.store.cutting import PAGE_BYTES, aligned
from deepseek.weights.store.reader import Verify
from deepseek.weights.store.side_by_side import Run, map_side_by_side, prefer_huge_pages

FORMAT = "deepseek-prepared/1"

_ALIGNMENT = 64
"""Of every tensor: a cache line, and the widest register."""
_BLOCK_BYTES = 8 << 20
"""Written at once. Linux gives what is written in one call pages as large as that call: from 4 MiB
on, huge ones, which are mapped as they are (270 MB in 0.2 ms; of 1 MiB, 18 ms, and in small pages).
"""
_MAX_VIEWS = 512
"""Of one call; the system takes 1024."""

_checked: set[tuple[int, int, int, str]] = set()
"""Device, inode, last change and digest of what this process has written, or found intact."""


class WritingStopped(Exception):
    """Nobody wants the file any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor to be written."""

    dtype: str
    """As safetensors spells it."""
    shape: tuple[int, ...]
    data: memoryview
    """Its bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a file was made from."""

    model: str
    """The model's directory, or one of several with the same weights."""
    identity: str
    """Of its weights, as `weights_identity` had it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedFile:
    """A file whose header is intact and belongs to the key that was asked for."""

    path: Path
    about: str
    """What the writer told of it."""
    tensors: Mapping[str, TensorEntry]
    data_start: int
    num_bytes: int
    """Of the whole file."""
    digest: str
    """BLAKE3 of the data."""

    def map(self, *, verify: Verify = Verify.ONCE) -> memoryview:
        """Return the whole file as memory, without a copy; raises `CorruptWeights` and `OSError`.

        `verify` says when the data is compared with its digest: once by each process that has not
        written it itself, each time, or never. The memory is private: writing to it changes no
        file. It lives as long as a view of it, the file's name need not.
        """
        with self.path.open("rb") as file:
            state = os.fstat(file.fileno())
            if state.st_size != self.num_bytes:
                raise _corrupt(self.path, f"has become {state.st_size:,} bytes long")
            run = Run(at=0, file=file.fileno(), start=0, num_bytes=self.num_bytes)
            memory = map_side_by_side([run], num_bytes=self.num_bytes)
        prefer_huge_pages(memory)
        copy = _copy(state, self.digest)
        is_due = verify is Verify.ALWAYS or (verify is Verify.ONCE and copy not in _checked)
        if is_due:
            data = memory[self.data_start :]
            if blake3(data, max_threads=blake3.AUTO).hexdigest() != self.digest:
                raise _corrupt(self.path, "is damaged: its digest differs")
            _checked.add(copy)
        return memory


def open_prepared(path: Path, key: str) -> PreparedFile:
    """Return a file's description.

    Raises `CorruptWeights` where the header is damaged, the file cut off, or another one's.
    """
    layout = read_layout(path)
    metadata = layout.metadata
    if metadata.get("format") != FORMAT:
        raise _corrupt(path, f"is not of the format {FORMAT}")
    if metadata.get("checksum") != _checksum(layout.tensors, metadata):
        raise _corrupt(path, "is damaged: its header does not fit the header's checksum")
    if metadata.get("key") != key:
        raise _corrupt(path, f"is that of {metadata.get('key')}")
    end = max((entry.end for entry in layout.tensors.values()), default=0)
    return PreparedFile(
        path=path,
        about=metadata["about"],
        tensors=layout.tensors,
        data_start=layout.data_start,
        num_bytes=layout.data_start + end,
        digest=metadata["digest"],
    )


def read_origin(path: Path) -> Origin:
    """Return what a file was made from, whosever it is; raises `CorruptWeights`."""
    metadata = read_layout(path).metadata
    return Origin(model=metadata.get("model", ""), identity=metadata.get("identity", ""))


def size_of(tensors: Mapping[str, StoredTensor]) -> int:
    """Return about how large the file of these tensors will be."""
    return sum(aligned(tensor.data.nbytes, _ALIGNMENT) for tensor in tensors.values())


def write_prepared(
    file: int,
    tensors: Mapping[str, StoredTensor],
    *,
    key: str,
    origin: Origin,
    about: str,
    is_wanted: Callable[[], bool],
) -> None:
    """Write a file from its beginning and have it on disk; `file` is its descriptor.

    Everything is read back and compared. Raises `WritingStopped` between two blocks where it is not
    wanted any more, `CorruptWeights` where another than what was written is read, and `OSError`.
    """
    entries, parts = _laid_out(tensors)
    digest = _digest_of_parts(parts, is_wanted)
    metadata = {
        "format": FORMAT,
        "key": key,
        "model": origin.model,
        "identity": origin.identity,
        "about": about,
        "digest": digest,
    }
    header = _header(entries, {**metadata, "checksum": _checksum(entries, metadata)})
    at = 0
    for views in _blocks(chain((memoryview(header),), parts)):
        _require_wanted(is_wanted)
        at += _write(file, views, at)
    os.fsync(file)
    memory = map_side_by_side([Run(at=0, file=file, start=0, num_bytes=at)], num_bytes=at)
    read = blake3(memory[len(header) :]).hexdigest()
    if bytes(memory[: len(header)]) != header or read != digest:
        raise CorruptWeights("what was written is not what is read back: the disk is at fault")
    _checked.add(_copy(os.fstat(file), digest))


def _copy(state: os.stat_result, digest: str) -> tuple[int, int, int, str]:
    return state.st_dev, state.st_ino, state.st_mtime_ns, digest


def _laid_out(
    tensors: Mapping[str, StoredTensor],
) -> tuple[dict[str, TensorEntry], list[memoryview]]:
    """Return where each tensor comes to stand, and the data from the first to the last byte."""
    entries: dict[str, TensorEntry] = {}
    parts: list[memoryview] = []
    at = 0

    def add(name: str, dtype: str, shape: tuple[int, ...], data: memoryview) -> None:
        nonlocal at
        entries[name] = TensorEntry(dtype=dtype, shape=shape, start=at, end=at + data.nbytes)
        parts.append(data.cast("B"))
        at += data.nbytes

    for name, tensor in tensors.items():
        gap = -at % _ALIGNMENT
        if gap:
            add(f"pad.{len(parts)}", "U8", (gap,), memoryview(bytes(gap)))
        add(name, tensor.dtype, tensor.shape, tensor.data)
    return entries, parts


def _header(entries: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> bytes:
    """Return length and JSON, with spaces up to the next page: the format allows them."""
    content = {
        "__metadata__": metadata,
        **{
            name: {
                "dtype": entry.dtype,
                "shape": entry.shape,
                "data_offsets": (entry.start, entry.end),
            }
            for name, entry in entries.items()
        },
    }
    text = json.dumps(content, separators=(",", ":")).encode()
    size = aligned(8 + len(text), PAGE_BYTES) - 8
    return struct.pack("<Q", size) + text.ljust(size)


def _checksum(entries: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> str:
    told = {name: value for name, value in metadata.items() if name != "checksum"}
    places = [(name, e.dtype, e.shape, e.start, e.end) for name, e in entries.items()]
    return blake3(msgspec.json.encode((told, places), order="sorted")).hexdigest()


def _digest_of_parts(parts: Iterable[memoryview], is_wanted: Callable[[], bool]) -> str:
    hasher = blake3()
    for views in _blocks(parts):
        _require_wanted(is_wanted)
        for view in views:
            hasher.update(view)
    return hasher.hexdigest()


def _blocks(parts: Iterable[memoryview]) -> Iterator[list[memoryview]]:
    """Yield the parts in pieces that make `_BLOCK_BYTES` together, the last one less."""
    views: list[memoryview] = []
    room = _BLOCK_BYTES
    for part in parts:
        rest = part
        while rest.nbytes:
            view, rest = rest[:room], rest[room:]
            views.append(view)
            room -= view.nbytes
            if not room or len(views) == _MAX_VIEWS:
                yield views
                views, room = [], room or _BLOCK_BYTES
    if views:
        yield views


def _write(file: int, views: list[memoryview], at: int) -> int:
    """Write all of the views at a position, and return how many bytes they are."""
    start = at
    while views:
        num_bytes = os.pwritev(file, views, at)
        at += num_bytes
        while views and num_bytes >= views[0].nbytes:
            num_bytes -= views.pop(0).nbytes
        if views:
            views[0] = views[0][num_bytes:]
    return at - start


def _require_wanted(is_wanted: Callable[[], bool]) -> None:
    if not is_wanted():
        raise WritingStopped


def _corrupt(path: Path, fault: str) -> CorruptWeights:
    return CorruptWeights(f"prepared weights {path}: the file {fault}")
