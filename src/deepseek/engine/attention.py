"""Attention over slots for one step's mixed batch of decode tokens and prompt chunks.

Rows of a step: first one row per decoding sequence, ordered by slot, then the prompt chunks.
Neighbouring slots are attended in one kernel call over a strided view of the KV cache. Query heads
of one KV head are laid along the query axis, so grouped-query attention costs no copy of the keys.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from deepseek.engine.kv_cache import KVCache, Slot

MAX_WASTED_TOKENS = 512
"""Padding a shared kernel call may attend to before two calls are cheaper: an estimate
from some 20 us a call and the time to read a token's rows (768 bytes a layer, SmolLM2)."""


_KEY_STEP = 32
_QUERY_STEP = 16


def padded_rows(num_rows: int) -> int:
    """Return the row count a step is padded to.

    Every new shape costs the CPU's kernel library memory that it keeps: exact sizes made a worker
    grow by 7 % over a thousand requests. Steps of 16 and
    fewer rows, where padding would cost most, stay as they are.
    """
    for limit, step in ((16, 1), (64, 8), (256, 32)):
        if num_rows <= limit:
            return -(-num_rows // step) * step
    return -(-num_rows // 64) * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Consecutive rows of a step for one slot: `length` counts the slot's tokens after the step."""

    slot: Slot
    num_rows: int
    length: int


@dataclass(frozen=True, slots=True)
class _Call:
    first_row: int
    num_rows: int
    first_slot: int
    num_slots: int
    length: int
    """Keys attended to, padding included."""
    mask: torch.Tensor | None
    num_padding: int = 0
    """Query rows added to a chunk."""


class AttentionPlan:
    """Where each row of a step is written and which keys it sees."""

    def __init__(
        self, cache: KVCache, decodes: list[Rows], chunks: list[Rows], *, num_heads: int
    ) -> None:
        """Plan a step; `decodes` must be ordered by slot index and have one row each."""
        self._cache = cache
        self._shape = cache.shape
        self._groups = num_heads // cache.shape.num_kv_heads
        device = cache.layers.device
        index: list[int] = []
        for part in (*decodes, *chunks):
            start = cache.row(part.slot, part.length - part.num_rows)
            index.extend(range(start, start + part.num_rows))
        self._write_index = torch.tensor(index, device=device)
        self._num_padding = padded_rows(len(index)) - len(index)
        self._calls = [self._decode_call(run, row) for run, row in _runs(decodes)]
        row = len(decodes)
        for chunk in chunks:
            self._calls.append(self._chunk_call(chunk, row))
            row += chunk.num_rows

    def attend(self, layer: int, queries: torch.Tensor, keys_values: torch.Tensor) -> torch.Tensor:
        """Store the rows' keys and values, and attend.

        queries: (rows, heads * head_dim); keys_values: (rows, 2 * kv_heads * head_dim), rows as
        `padded_rows` says; what is computed for padding is dropped. Returns (rows, heads *
        head_dim).
        """
        num_rows = self._write_index.numel()
        self._cache.layers[layer].index_copy_(0, self._write_index, keys_values[:num_rows])
        outputs = [self._run(call, layer, queries) for call in self._calls]
        if self._num_padding:
            outputs.append(queries.new_zeros(self._num_padding, queries.shape[1]))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _run(self, call: _Call, layer: int, queries: torch.Tensor) -> torch.Tensor:
        kv_heads, dim, groups = self._shape.num_kv_heads, self._shape.head_dim, self._groups
        slots = slice(call.first_slot, call.first_slot + call.num_slots)
        keys = self._cache.keys[layer][slots, :, : call.length]
        values = self._cache.values[layer][slots, :, : call.length]
        rows = queries[call.first_row : call.first_row + call.num_rows]
        if call.num_slots == call.num_rows:  # one token per slot
            query = rows.view(call.num_rows, kv_heads, groups, dim)
            out = scaled_dot_product_attention(query, keys, values, attn_mask=call.mask)
            return out.reshape(call.num_rows, -1)
        num_queries = call.num_rows + call.num_padding
        query = rows.view(call.num_rows, kv_heads, groups, dim).permute(1, 2, 0, 3)
        query = pad(query, (0, 0, 0, call.num_padding))
        query = query.reshape(1, kv_heads, groups * num_queries, dim)
        out = scaled_dot_product_attention(query, keys, values, attn_mask=call.mask)
        out = out.view(kv_heads, groups, num_queries, dim)[:, :, : call.num_rows]
        return out.permute(2, 0, 1, 3).reshape(call.num_rows, -1)

    def _decode_call(self, run: list[Rows], first_row: int) -> _Call:
        length = self._padded_length(max(part.length for part in run))
        mask = None
        if any(part.length != length for part in run):
            lengths = torch.tensor([part.length for part in run], device=self._write_index.device)
            positions = torch.arange(length, device=self._write_index.device)
            mask = torch.zeros(len(run), length, dtype=self._shape.dtype, device=lengths.device)
            mask.masked_fill_(positions >= lengths[:, None], float("-inf"))
            mask = mask[:, None, None, :].expand(-1, self._shape.num_kv_heads, self._groups, -1)
        return _Call(first_row, len(run), run[0].slot.index, len(run), length, mask)

    def _chunk_call(self, chunk: Rows, first_row: int) -> _Call:
        if chunk.num_rows == 1:
            return self._decode_call([chunk], first_row)
        device = self._write_index.device
        first, length = chunk.length - chunk.num_rows, self._padded_length(chunk.length)
        num_padding = -chunk.num_rows % _QUERY_STEP
        queries = torch.arange(first, chunk.length + num_padding, device=device)
        keys = torch.arange(length, device=device)
        mask = torch.zeros(queries.numel(), length, dtype=self._shape.dtype, device=device)
        mask.masked_fill_(keys > queries[:, None], float("-inf"))
        mask = mask.repeat(self._groups, 1)
        return _Call(first_row, chunk.num_rows, chunk.slot.index, 1, length, mask, num_padding)

    def _padded_length(self, length: int) -> int:
        """Round a key count up; the rows beyond are masked, whatever they hold."""
        return min(-(-length // _KEY_STEP) * _KEY_STEP, self._cache.keys[0].shape[2])


def _runs(decodes: list[Rows]) -> list[tuple[list[Rows], int]]:
    """Cut decode rows into runs of neighbouring slots with tolerable padding."""
    runs: list[tuple[list[Rows], int]] = []
    run: list[Rows] = []
    longest = total = 0
    for row, part in enumerate(decodes):
        joined = max(longest, part.length)
        waste = joined * (len(run) + 1) - total - part.length
        if run and (part.slot.index != run[-1].slot.index + 1 or waste > MAX_WASTED_TOKENS):
            runs.append((run, row - len(run)))
            run, longest, total = [], 0, 0
        run.append(part)
        longest = max(longest, part.length)
        total += part.length
    if run:
        runs.append((run, len(decodes) - len(run)))
    return runs
