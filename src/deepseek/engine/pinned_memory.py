"""Host memory that a GPU reads and writes at the full speed of the bus.

It takes seconds to pin a model's size, so it is taken in chunks: between two of them a load can be
cancelled, and the driver lets others in. Chunks are powers of two, to which torch rounds up. Those
that are given up torch keeps for the next model: a host tier's memory is pinned once, and stays
with the worker.
"""

from collections.abc import Callable, Iterator

import torch

_CHUNK_BYTES = 64 * 1024**2
PIECE_BYTES = 8 * 1024**2
"""Copied at a time: as fast as all at once, and between two pieces a copy can be ended. Chunks hold
whole pieces."""


class PinnedMemory:
    """A range of bytes, in chunks."""

    def __init__(self, num_bytes: int, *, before_chunk: Callable[[int], None]) -> None:
        """Pin the memory; `before_chunk` may end that by raising."""
        self.num_bytes = num_bytes
        self._chunks: list[torch.Tensor] = []
        for start in range(0, num_bytes, _CHUNK_BYTES):
            size = min(_CHUNK_BYTES, num_bytes - start)
            before_chunk(size)
            self._chunks.append(torch.empty(size, dtype=torch.uint8, pin_memory=True))

    def pieces(self, start: int, end: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the pieces of a part of the range: where each is in it, and its memory (uint8)."""
        while start < end:
            stop = min(end, (start // PIECE_BYTES + 1) * PIECE_BYTES)
            chunk, first = divmod(start, _CHUNK_BYTES)
            yield slice(start, stop), self._chunks[chunk][first : first + stop - start]
            start = stop
