"""Attention state in contiguous slots whose physical memory comes and goes with their length.

Each sequence owns a slot: a run of `max_len` token rows in every layer, contiguous in *virtual*
memory. On a CPU the operating system gives physical pages when a row is first written and takes
them back with `madvise`, so attention kernels read plain strided tensors (no block table, no
gather) while memory is still paged. The idea is vAttention's (arXiv:2405.04437), with the kernel's
own demand paging in place of the CUDA driver's.

A finished sequence's slot stays *cached*: a later prompt that starts with the same tokens takes the
rows over (in place, or by copying them). Cached slots give way, least recently used first, when
running sequences need memory. Residency is counted in tokens and never exceeds `capacity_tokens`.
"""

import math
import mmap
from dataclasses import dataclass, field
from typing import Any

import torch

MIN_REUSE_TOKENS = 16
"""Shorter common prefixes are not worth a copy."""
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if hasattr(mmap, "MAP_PRIVATE") else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class KVShape:
    """Size of one model's attention state."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def row_width(self) -> int:
        """Elements of one token in one layer: keys of all heads, then values of all heads."""
        return 2 * self.num_kv_heads * self.head_dim

    @property
    def row_bytes(self) -> int:
        return self.row_width * self.dtype.itemsize

    @property
    def token_bytes(self) -> int:
        """Bytes of one token over all layers."""
        return self.num_layers * self.row_bytes


@dataclass(slots=True, kw_only=True)
class Slot:
    """One contiguous run of rows, and what it holds."""

    index: int
    tokens: list[int] = field(default_factory=list)
    """Tokens whose rows are valid, in order."""
    resident_tokens: int = 0
    """High-water mark of rows written since the slot's memory was last given back."""
    in_use: bool = False
    last_used: int = 0


class KVCache:
    """The slots of one model."""

    def __init__(
        self, shape: KVShape, *, num_slots: int, max_len: int, capacity_tokens: int, device: str
    ) -> None:
        """Reserve address space for `num_slots` x `max_len` rows per layer.

        On a GPU, where memory is not paged on demand, the rows are allocated at once; the caller
        sizes `num_slots` accordingly.
        """
        self.shape = shape
        self.max_len = max_len
        self.capacity_tokens = capacity_tokens
        # Slots start on page boundaries so that one slot's pages can be given back alone.
        granule = mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, shape.row_bytes)
        self._stride = -(-max_len // granule) * granule
        self._slots = [Slot(index=i) for i in range(num_slots)]
        self._clock = 0
        self._resident_tokens = 0
        self._memory: mmap.mmap | None = None
        rows = shape.num_layers * num_slots * self._stride
        if device == "cpu":
            self._memory = _reserve(rows * shape.row_bytes)
            flat = torch.frombuffer(self._memory, dtype=shape.dtype)
        else:
            flat = torch.zeros(rows * shape.row_width, dtype=shape.dtype, device=device)
        self.layers = flat.view(shape.num_layers, num_slots * self._stride, shape.row_width)
        self._by_slot = flat.view(shape.num_layers, num_slots, self._stride, shape.row_width)
        heads = (shape.num_layers, num_slots, self._stride, shape.num_kv_heads, shape.head_dim)
        keys, values = self._by_slot.chunk(2, dim=-1)
        # (slots, heads, rows, head_dim) per layer: the layout attention kernels read.
        self.keys = list(keys.view(heads).transpose(2, 3).unbind(0))
        self.values = list(values.view(heads).transpose(2, 3).unbind(0))

    def row(self, slot: Slot, position: int) -> int:
        """Return the index of a token's row in `layers[i]`."""
        return slot.index * self._stride + position

    @property
    def resident_tokens(self) -> int:
        """Rows that hold memory; counted along, since every sequence asks in every step."""
        return self._resident_tokens

    @property
    def used_tokens(self) -> int:
        """Tokens resident for running sequences."""
        return sum(slot.resident_tokens for slot in self._slots if slot.in_use)

    def acquire(self, tokens: list[int]) -> tuple[Slot, int] | None:
        """Take a slot for a sequence; return it and how many of `tokens` it already holds.

        None when every slot is in use. The last token is never counted as held: its row must be
        computed to obtain logits.
        """
        source, num_shared = self.longest_prefix(tokens)
        num_shared = min(num_shared, len(tokens) - 1)
        self._clock += 1
        if source is None or num_shared < MIN_REUSE_TOKENS:
            slot = self._free_slot(keep=None)
            if slot is not None:
                self._take(slot, [])
            return None if slot is None else (slot, 0)
        if not source.in_use and 2 * num_shared >= len(source.tokens):
            self._take(source, source.tokens[:num_shared])
            return source, num_shared
        slot = self._free_slot(keep=source)
        if slot is None:
            return None
        self._take(slot, [])
        if not self._reserve_beside(source, slot, num_shared):
            return slot, 0
        self._by_slot[:, slot.index, :num_shared] = self._by_slot[:, source.index, :num_shared]
        source.last_used = self._clock
        slot.tokens = source.tokens[:num_shared]
        return slot, num_shared

    def longest_prefix(self, tokens: list[int]) -> tuple[Slot | None, int]:
        """Return the slot that shares the longest prefix with `tokens`, and its length."""
        best, best_len = None, 0
        for slot in self._slots:
            if (
                len(slot.tokens) > best_len
                and slot.tokens[: best_len + 1] == tokens[: best_len + 1]
            ):
                best, best_len = slot, common_prefix(slot.tokens, tokens)
        return best, best_len

    def reserve(self, slot: Slot, length: int) -> bool:
        """Make room for `length` rows, evicting cached slots; False if there is none."""
        growth = length - slot.resident_tokens
        if growth <= 0:
            return True
        missing = self._resident_tokens + growth - self.capacity_tokens
        if missing > 0:
            cached = [s for s in self._slots if s.resident_tokens and not s.in_use]
            if sum(s.resident_tokens for s in cached) < missing:
                return False
            for victim in sorted(cached, key=lambda s: s.last_used):
                if missing <= 0:
                    break
                missing -= victim.resident_tokens
                self.evict(victim)
        slot.resident_tokens = length
        self._resident_tokens += growth
        return True

    def release(self, slot: Slot) -> None:
        """End a sequence; its rows stay for reuse until the memory is needed."""
        self._clock += 1
        slot.in_use = False
        slot.last_used = self._clock
        if len(slot.tokens) < MIN_REUSE_TOKENS:
            self.evict(slot)

    def evict(self, slot: Slot) -> None:
        """Forget a slot's rows and give their memory back."""
        slot.tokens = []
        self._resident_tokens -= slot.resident_tokens
        slot.resident_tokens = 0
        if self._memory is None:
            return
        length = self._stride * self.shape.row_bytes
        for layer in range(self.shape.num_layers):
            start = (layer * len(self._slots) + slot.index) * length
            self._memory.madvise(mmap.MADV_DONTNEED, start, length)

    def _reserve_beside(self, source: Slot, slot: Slot, length: int) -> bool:
        """Reserve without evicting the slot that is about to be copied."""
        was_in_use, source.in_use = source.in_use, True
        try:
            return self.reserve(slot, length)
        finally:
            source.in_use = was_in_use

    def _take(self, slot: Slot, tokens: list[int]) -> None:
        slot.in_use = True
        slot.tokens = tokens
        slot.last_used = self._clock

    def _free_slot(self, *, keep: Slot | None) -> Slot | None:
        """Return an empty slot, the lowest first (neighbours make one attention call), else LRU."""
        free = [s for s in self._slots if not s.in_use and s is not keep]
        if not free:
            return None
        slot = min(free, key=lambda s: (bool(s.tokens), s.last_used if s.tokens else s.index))
        if slot.resident_tokens:
            self.evict(slot)
        return slot


def common_prefix(left: list[int], right: list[int]) -> int:
    """Return the length of the common prefix, by bisection over slice comparisons (C speed)."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _reserve(num_bytes: int) -> mmap.mmap:
    """Map zero pages that take no memory until they are written."""
    flags: dict[str, Any] = {}
    if hasattr(mmap, "MAP_PRIVATE"):
        flags["flags"] = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    memory = mmap.mmap(-1, num_bytes, **flags)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        # A huge page would make 2 MiB resident for one row.
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory
