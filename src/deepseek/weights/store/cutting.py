"""How tensors are cut into chunks, decided from names and sizes alone.

A tensor of `gather_below` bytes or more is cut at multiples of the chunk size from its own start
and shares no chunk with another: whatever stands around it, its chunks are the same, so models that
share the tensor share its chunks. Smaller ones are gathered, a layer at a time, before the layer's
large ones.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from deepseek.weights.store.first_use import first_use, in_first_use_order

MAX_CHUNK_BYTES = 10_000_000
"""What no stored chunk exceeds, a sealed one with its tag included."""
CHUNK_BYTES = 8 << 20
PAGE_BYTES = 4096
"""Chunks begin at multiples of it, in packs and in memory, so that they can be mapped."""
HUGE_PAGE_BYTES = 2 << 20
"""Where positions in pack and memory agree modulo this, the page cache's huge pages are mapped as
they are: 2 GB in 3 ms instead of 90."""
TENSOR_ALIGNMENT = 64
"""Of a tensor inside a chunk: a cache line, and what vector instructions want."""
_GATHER_FRACTION = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Bytes `start` to `start + num_bytes` of a tensor, to stand at `offset` of a chunk."""

    tensor: str
    start: int
    num_bytes: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CutChunk:
    """One chunk to be: its pieces in order; what lies between them is zero."""

    pieces: tuple[Piece, ...]

    @property
    def num_bytes(self) -> int:
        last = self.pieces[-1]
        return last.offset + last.num_bytes


def aligned(position: int, alignment: int) -> int:
    """Return the first multiple of `alignment` at or after `position`."""
    return -(-position // alignment) * alignment


def cut(sizes: Mapping[str, int], *, chunk_bytes: int = CHUNK_BYTES) -> list[CutChunk]:
    """Return the chunks of a model of tensors with these sizes in bytes, in first-use order.

    `chunk_bytes` is a multiple of `PAGE_BYTES` up to `MAX_CHUNK_BYTES`. A tensor of no bytes has a
    piece too, so that each has its place.
    """
    if chunk_bytes % PAGE_BYTES or not 0 < chunk_bytes <= MAX_CHUNK_BYTES:
        raise ValueError(f"chunks of {chunk_bytes} bytes: must be pages, at most {MAX_CHUNK_BYTES}")
    gather_below = chunk_bytes // _GATHER_FRACTION
    chunks: list[CutChunk] = []
    for _, group in groupby(in_first_use_order(sizes), key=lambda name: first_use(name).group):
        names = list(group)
        small = [name for name in names if sizes[name] < gather_below]
        chunks += _gathered(((name, sizes[name]) for name in small), chunk_bytes)
        for name in names:
            if sizes[name] >= gather_below:
                chunks += _sliced(name, sizes[name], chunk_bytes)
    return chunks


def _gathered(tensors: Iterable[tuple[str, int]], chunk_bytes: int) -> Iterator[CutChunk]:
    pieces: list[Piece] = []
    end = 0
    for name, num_bytes in tensors:
        offset = aligned(end, TENSOR_ALIGNMENT)
        if pieces and offset + num_bytes > chunk_bytes:
            yield CutChunk(pieces=tuple(pieces))
            pieces, offset = [], 0
        pieces.append(Piece(tensor=name, start=0, num_bytes=num_bytes, offset=offset))
        end = offset + num_bytes
    if pieces:
        yield CutChunk(pieces=tuple(pieces))


def _sliced(name: str, num_bytes: int, chunk_bytes: int) -> Iterator[CutChunk]:
    for start in range(0, num_bytes, chunk_bytes):
        length = min(chunk_bytes, num_bytes - start)
        yield CutChunk(pieces=(Piece(tensor=name, start=start, num_bytes=length, offset=0),))
