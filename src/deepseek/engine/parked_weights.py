"""Weights that leave a GPU for pinned host memory and come back, at the same addresses.

The host copy is made once, when the model is loaded: weights never change. Pinned memory is copied
at the speed of the bus, eight times that of memory which is not (H100: 53 to 6.6 GB/s), and takes
seconds to pin: so it is kept as long as the model.
"""

import torch

from deepseek.engine.device_arena import DeviceArena
from deepseek.engine.weights_memory import held_by
from deepseek.weights.store.cutting import aligned

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
            num_bytes += aligned(tensors[0].untyped_storage().nbytes(), _ALIGNMENT)
        self.num_bytes = num_bytes
        self._arena = DeviceArena(num_bytes, device=device)
        self._host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        for key, tensors in storages.items():
            _move(tensors, self._arena.memory, start=starts[key])
        self._host.copy_(self._arena.memory)
        self._copies = torch.cuda.Stream(device)

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
    for value in held_by(model):
        if not isinstance(value, torch.Tensor) or value.device.type != device.type:
            continue
        if value.untyped_storage().nbytes():
            found.setdefault(value.untyped_storage().data_ptr(), []).append(value)
    return found
