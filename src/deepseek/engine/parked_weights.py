"""Weights that leave a GPU for pinned host memory and come back, at the same addresses.

The host copy is made once, when the model is loaded: weights never change. Pinned memory is copied
at the speed of the bus, eight times that of memory which is not (H100: 53 to 6.6 GB/s), and takes
seconds to pin: so it is kept as long as the model.
"""

from collections.abc import Iterator
from typing import Any

import torch

from deepseek.engine.device_arena import DeviceArena

_ALIGNMENT = 256
"""Of every tensor, as CUDA's own allocator has it."""
_PIECE_BYTES = 10_000_000
"""Copied at a time: as fast as all at once, and between two pieces a copy can be ended."""


class ParkedWeights:
    """The tensors of one model on one GPU, and their host copy."""

    def __init__(self, model: object, *, device: torch.device) -> None:
        """Move all tensors that `model` holds on the device into one arena, and copy them.

        Their objects stay the same and move in place. To be done before anything has remembered
        an address. Takes the memory of the largest tensor besides.
        """
        self._device = device
        storages = _by_storage(model, device)
        starts: dict[int, int] = {}
        num_bytes = 0
        for key, tensors in storages.items():
            starts[key] = num_bytes
            size = tensors[0].untyped_storage().nbytes()
            num_bytes += -(-size // _ALIGNMENT) * _ALIGNMENT
        self.num_bytes = num_bytes
        self._arena = DeviceArena(num_bytes, device=device)
        self._host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        for key, tensors in storages.items():
            _move(tensors, self._arena.memory, start=starts[key])
        self._host.copy_(self._arena.memory)
        self._copies = torch.cuda.Stream(device)

    @property
    def is_on_device(self) -> bool:
        return self._arena.is_backed

    def park(self) -> None:
        """Give the device's memory back; the host copy stays."""
        torch.cuda.synchronize(self._device)
        self._arena.release()

    def wake(self) -> None:
        """Copy the weights back; returns when the copy is queued before what the device does next.

        Raises `torch.OutOfMemoryError`, and has changed nothing then.
        """
        self._arena.acquire()
        with torch.cuda.stream(self._copies):
            for start in range(0, self.num_bytes, _PIECE_BYTES):
                piece = slice(start, start + _PIECE_BYTES)
                self._arena.memory[piece].copy_(self._host[piece], non_blocking=True)
        torch.cuda.current_stream(self._device).wait_stream(self._copies)


def _move(tensors: list[torch.Tensor], arena: torch.Tensor, *, start: int) -> None:
    """Move one storage with all tensors that are views of it."""
    storage = tensors[0].untyped_storage()
    end = start + storage.nbytes()
    whole = torch.empty(0, dtype=torch.uint8, device=arena.device).set_(storage)
    arena[start:end].copy_(whole)
    for tensor in tensors:
        place = arena[start:end].view(tensor.dtype)
        tensor.data = place.as_strided(
            tensor.shape, tensor.stride(), place.storage_offset() + tensor.storage_offset()
        )


def _by_storage(model: object, device: torch.device) -> dict[int, list[torch.Tensor]]:
    """Return the tensors by their storage's address, in the order in which the model holds them."""
    found: dict[int, list[torch.Tensor]] = {}
    for tensor in _tensors(model):
        if tensor.device.type == device.type and tensor.untyped_storage().nbytes():
            found.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    return found


def _tensors(root: object) -> Iterator[torch.Tensor]:
    """Yield every tensor that can be reached through attributes and containers, once."""
    seen: set[int] = set()
    queue: list[Any] = [root]
    while queue:
        item = queue.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            yield item
        else:
            queue.extend(reversed(list(_parts(item))))


def _parts(item: object) -> Iterator[object]:
    if isinstance(item, dict):
        yield from item.values()
    elif isinstance(item, (list, tuple, set)):
        yield from item
    elif type(item).__module__.startswith(("deepseek.", "torch.nn.")):
        yield from vars(item).values() if hasattr(item, "__dict__") else ()
        for cls in type(item).__mro__:
            for name in getattr(cls, "__slots__", ()):
                if hasattr(item, name):
                    yield getattr(item, name)
