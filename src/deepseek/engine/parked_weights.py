"""Weights that leave a GPU for pinned host memory and come back, at the same addresses.

The host copy is made once, when the model is loaded: weights never change. Pinned memory is copied
at the speed of the bus, eight times that of memory which is not (H100: 53 to 6.6 GB/s).
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from deepseek.engine.base import BeforePiece, at_once
from deepseek.engine.device_arena import DeviceArena
from deepseek.engine.graph_capture import empty_cache, whole_device
from deepseek.engine.pinned_memory import PinnedMemory
from deepseek.engine.weights_memory import held_by
from deepseek.weights.store.cutting import aligned

_ALIGNMENT = 256
"""Of every tensor, as CUDA's own allocator has it."""

_PIECES_AHEAD = 64
"""Copies in the queue: 10 ms of the bus. It is not to run dry while the steps' thread has the
interpreter for its turn, of 5 ms."""


class ParkedWeights:
    """The tensors of one model on one GPU, and their host copy."""

    def __init__(
        self, model: object, *, device: torch.device, before_piece: BeforePiece = at_once
    ) -> None:
        """Move all tensors that `model` holds on the device into one arena, by way of the host.

        Their objects stay the same. To be done before anything has remembered an address. Takes no
        device memory besides; `before_piece`, told of no bytes here, may end it: the model is lost,
        its memory is not.
        """

        def check(num_bytes: int) -> None:
            before_piece(0)

        self._device = device
        self._copies = torch.cuda.Stream(device)
        storages = list(_by_storage(model, device).values())
        starts = list(_starts(storages))
        self.num_bytes = starts.pop()
        host = PinnedMemory(self.num_bytes, before_chunk=check)
        views = [
            view
            for tensors, start in zip(storages, starts, strict=True)
            for view in _moved_out(tensors, host, start=start, before_piece=check)
        ]
        empty_cache(device)  # what they leave is to be the arena's
        self._host: PinnedMemory | None = host
        self._arena = DeviceArena(self.num_bytes, device=device)
        for view in views:
            view.move_to(self._arena.memory)
        try:
            self._copy(host, before_piece=check)
        except BaseException:
            self.close()
            raise

    @property
    def has_host_copy(self) -> bool:
        """Whether the weights may leave the device."""
        return self._host is not None

    def park(self) -> None:
        """Give the device's memory back; the host copy stays."""
        with whole_device(self._device):
            self._arena.release()

    def wake(self, before_piece: BeforePiece = at_once) -> None:
        """Copy the weights back; the last pieces are queued before what this thread does next.

        Raises `torch.OutOfMemoryError`, and what `before_piece` raises; parked still then.
        """
        if self._host is None:
            raise RuntimeError("there is no host copy to come back from")
        self._arena.acquire()
        try:
            self._copy(self._host, before_piece=before_piece)
        except BaseException:
            self._copies.synchronize()
            self._arena.release()
            raise

    def drop_host_copy(self) -> None:
        """Give the host's memory back: the weights stay on the device. To be called while there."""
        self._host = None

    def close(self) -> None:
        """Give back all memory and the addresses; the model is not used afterwards."""
        self._host = None
        self._arena.close()

    def _copy(self, host: PinnedMemory, *, before_piece: BeforePiece) -> None:
        """Copy piece by piece, few of them ahead: who waits for the device waits for these only."""
        ahead: deque[torch.cuda.Event] = deque()
        with torch.cuda.stream(self._copies):
            for place, piece in host.pieces(0, self.num_bytes):
                before_piece(piece.nbytes)
                self._arena.memory[place].copy_(piece, non_blocking=True)
                copied = torch.cuda.Event(blocking=True)  # sleeps: the processor is the steps'
                copied.record()
                ahead.append(copied)
                if len(ahead) > _PIECES_AHEAD:
                    ahead.popleft().synchronize()
        torch.cuda.current_stream(self._device).wait_stream(self._copies)


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """What a tensor was of its storage, and where that storage is in the arena."""

    tensor: torch.Tensor
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    """In elements, of the storage."""
    place: slice

    def move_to(self, arena: torch.Tensor) -> None:
        """Make the tensor the same view of the arena."""
        storage = arena[self.place].view(self.tensor.dtype)
        self.tensor.data = storage.as_strided(
            self.shape, self.stride, storage.storage_offset() + self.offset
        )


def _moved_out(
    tensors: list[torch.Tensor], host: PinnedMemory, *, start: int, before_piece: BeforePiece
) -> list[_View]:
    """Copy one storage to the host and free it; return what its tensors were of it."""
    storage = tensors[0].untyped_storage()
    end = start + storage.nbytes()
    whole = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    for place, piece in host.pieces(start, end):
        before_piece(piece.nbytes)
        piece.copy_(whole[place.start - start : place.stop - start])
    views = []
    for tensor in tensors:
        views.append(
            _View(
                tensor=tensor,
                shape=tensor.shape,
                stride=tensor.stride(),
                offset=tensor.storage_offset(),
                place=slice(start, end),
            )
        )
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return views


def _starts(storages: list[list[torch.Tensor]]) -> Iterator[int]:
    """Yield where each storage begins in the arena, and at last where all of them end."""
    start = 0
    for tensors in storages:
        yield start
        start += aligned(tensors[0].untyped_storage().nbytes(), _ALIGNMENT)
    yield start


def _by_storage(model: object, device: torch.device) -> dict[int, list[torch.Tensor]]:
    """Return the tensors by their storage's address, in the order in which the model holds them."""
    found: dict[int, list[torch.Tensor]] = {}
    for value in held_by(model):
        if not isinstance(value, torch.Tensor) or value.device.type != device.type:
            continue
        if value.untyped_storage().nbytes():
            found.setdefault(value.untyped_storage().data_ptr(), []).append(value)
    return found
