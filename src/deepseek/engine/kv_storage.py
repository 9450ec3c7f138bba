"""The memory behind a `BlockPool`: one tensor of keys and one of values for each layer."""

import mmap
from typing import Any

import torch

from deepseek.engine.batch import KVShape, LayerKV
from deepseek.engine.device_arena import DeviceArena

_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if hasattr(mmap, "MAP_PRIVATE") else 0)


class KVStorage:
    """Paged attention state of one model on one device."""

    def __init__(
        self,
        shape: KVShape,
        *,
        num_blocks: int,
        block_tokens: int,
        device: str,
        is_releasable: bool = False,
    ) -> None:
        """Reserve the blocks. On a CPU physical memory is taken when a block is first written.

        `is_releasable`: a GPU's memory can be given back for a while (`release`).
        """
        self._arena: DeviceArena | None = None
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        rows = num_blocks * block_tokens * shape.num_kv_heads
        widths = [shape.key_dim] if shape.values_in_keys else [shape.key_dim, shape.value_dim]
        total = shape.num_layers * rows * sum(widths)
        if device == "cpu":
            flat = torch.frombuffer(_reserve(total * shape.dtype.itemsize), dtype=shape.dtype)
        elif is_releasable:
            self._arena = DeviceArena(total * shape.dtype.itemsize, device=torch.device(device))
            flat = self._arena.memory.view(shape.dtype).zero_()
        else:
            flat = torch.zeros(total, dtype=shape.dtype, device=device)
        self.layers: list[LayerKV] = []
        for layer in flat.chunk(shape.num_layers):
            parts = [
                part.view(num_blocks, shape.num_kv_heads, block_tokens, width)
                for part, width in zip(
                    layer.split([rows * width for width in widths]), widths, strict=True
                )
            ]
            values = parts[0][..., : shape.value_dim] if shape.values_in_keys else parts[1]
            self.layers.append(LayerKV(parts[0], values))

    def release(self) -> None:
        """Give the device's memory back, and what it held."""
        if self._arena is not None:
            self._arena.release()

    def acquire(self) -> None:
        """Take the memory again, blank; raises `torch.OutOfMemoryError`, unchanged then."""
        if self._arena is not None and not self._arena.is_backed:
            self._arena.acquire()
            # Kernels read rows that nothing has been written to, and weigh them with zero.
            self._arena.memory.zero_()

    def close(self) -> None:
        """Give back memory and addresses; nobody computes with `layers` afterwards."""
        self.layers.clear()
        if self._arena is not None:
            self._arena.close()


def _reserve(num_bytes: int) -> mmap.mmap:
    """Map zero pages that take no memory until they are written."""
    flags: dict[str, Any] = {}
    if hasattr(mmap, "MAP_PRIVATE"):
        flags["flags"] = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return mmap.mmap(-1, num_bytes, **flags)
