"""Attention of few query rows over long paged state: decoding, and checking a few drafted tokens.

The keys of one sequence are split over several programs, so that a small batch fills the device;
the program that finishes last adds the parts up (arXiv:2311.01282 calls it split-KV, or
Flash-Decoding). The query heads that share a key head are rows of one matrix product.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# Triton types a kernel's arguments where it is launched.

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from deepseek.engine.batch import LayerKV
from deepseek.engine.ops.triton.launching import Launch, ceil_div, power_of_two, wait_for_inputs
from deepseek.engine.ops.triton.paging import (
    LOG2_E,
    VARYING,
    clear_rows,
    fetch_tile,
    head_blocks,
    load_columns,
    precision,
    softmax_step,
)

MAX_ROWS = 64
"""Query rows times grouped heads that one program takes at most."""
_MIN_ROWS = 16
"""Rows of the smallest matrix product."""
_MAX_SPLITS = 32
_MAX_SPLIT_UNITS = 16384
"""Sequences times heads times tiles of rows beyond which splitting cannot be needed."""
_PROGRAMS_PER_PROCESSOR = 2
"""How many programs a step should have at least, to keep the memory busy."""


@triton.jit
def _partial_attention(
    queries,
    row_inside,
    keys_ptr,
    values_ptr,
    table_ptr,
    limits,
    begin,
    end,
    context,
    scale,
    key_block_stride,
    key_token_stride,
    value_block_stride,
    value_token_stride,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    SHARED: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attend to the keys from `begin` to `end`; row m sees those up to `limits[m]`."""
    query = load_columns(queries, row_inside, 0, MAIN, KEY_DIM)
    if REST > 0:
        query_rest = load_columns(queries, row_inside, MAIN, REST, KEY_DIM)
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    out = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        key = fetch_tile(
            keys_ptr, table_ptr, start, context, 0, key_block_stride, key_token_stride,
            0, MAIN, KEY_DIM, BLOCK_TOKENS, BLOCK_N, SHARED,
        )  # fmt: skip
        scores = tl.dot(query, key.T, input_precision=PRECISION)
        if REST > 0:
            key_rest = fetch_tile(
                keys_ptr, table_ptr, start, context, 0, key_block_stride, key_token_stride,
                MAIN, REST, KEY_DIM, BLOCK_TOKENS, BLOCK_N, False,
            )  # fmt: skip
            scores = tl.dot(query_rest, key_rest.T, scores, input_precision=PRECISION)
        positions = start + tl.arange(0, BLOCK_N)
        scores = tl.where(positions[None, :] <= limits[:, None], scores, float("-inf"))
        weights, maximum, total, factor = softmax_step(scores, maximum, total, scale)
        value = key
        if not SHARED:
            value = fetch_tile(
                values_ptr, table_ptr, start, context, 0, value_block_stride, value_token_stride,
                0, BLOCK_V, VALUE_DIM, BLOCK_TOKENS, BLOCK_N, True,
            )  # fmt: skip
        out = out * factor[:, None]
        out = tl.dot(weights.to(value.dtype), value, out, input_precision=PRECISION)
    return out, maximum, total


@triton.jit
def _combine(
    partial_ptr,
    stats_ptr,
    active,
    mask,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Add up what `active` programs left for one unit; read past the first cache, which may be
    stale."""
    rows = tl.arange(0, BLOCK_M)
    splits = tl.arange(0, SPLITS)
    stats = stats_ptr + (splits[:, None] * 2) * BLOCK_M + rows[None, :]
    live = (splits < active)[:, None]
    maxima = tl.load(stats, mask=live, other=float("-inf"), cache_modifier=".cg")
    totals = tl.load(stats + BLOCK_M, mask=live, other=0.0, cache_modifier=".cg")
    top = tl.max(maxima, axis=0)
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(totals * tl.exp2(maxima - top[None, :]), axis=0)
    parts = partial_ptr + rows[:, None] * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]
    out = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    for split in range(active):
        maximum = tl.load(stats_ptr + split * 2 * BLOCK_M + rows, cache_modifier=".cg")
        part = tl.load(
            parts + split * BLOCK_M * BLOCK_V, mask=mask, other=0.0, cache_modifier=".cg"
        )
        out += part * tl.exp2(maximum - top)[:, None]
    return out / total[:, None]


@triton.jit
def _leave_part(
    out,
    maximum,
    total,
    mask,
    targets,
    split,
    active,
    partial_ptr,
    stats_ptr,
    arrival_ptr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Leave one split's part of a unit; the last of its `active` programs adds all up."""
    lanes = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_V)
    part = partial_ptr + (split * BLOCK_M + lanes)[:, None] * BLOCK_V + columns[None, :]
    tl.store(part, out, mask=mask)
    tl.store(stats_ptr + split * 2 * BLOCK_M + lanes, maximum)
    tl.store(stats_ptr + (split * 2 + 1) * BLOCK_M + lanes, total)
    tl.debug_barrier()  # every thread's stores come before the program's arrival
    if tl.atomic_add(arrival_ptr, 1, sem="acq_rel") == active - 1:
        out = _combine(partial_ptr, stats_ptr, active, mask, BLOCK_V, BLOCK_M, SPLITS)
        tl.store(targets, out, mask=mask)
        tl.store(arrival_ptr, 0)  # for the next layer


@triton.jit(do_not_specialize=VARYING)
def _split_kernel(
    queries_ptr,
    keys_ptr,
    values_ptr,
    out_ptr,
    partial_ptr,
    stats_ptr,
    arrivals_ptr,
    query_starts_ptr,
    context_lens_ptr,
    tables_ptr,
    table_stride,
    total_rows,
    query_row_stride,
    query_head_stride,
    scale,
    key_block_stride,
    key_head_stride,
    key_token_stride,
    value_block_stride,
    value_head_stride,
    value_token_stride,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    SHARED: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_V: tl.constexpr,
    ONE_ROW: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One split of the keys of one sequence, one key head, BLOCK_M of its query rows."""
    wait_for_inputs(OVERLAP)
    split = tl.program_id(0)
    head = tl.program_id(1) // TILES
    sequence = tl.program_id(2)
    context = tl.load(context_lens_ptr + sequence)
    first, num_rows = sequence, 1
    if not ONE_ROW:
        first = tl.load(query_starts_ptr + sequence)
        num_rows = tl.load(query_starts_ptr + sequence + 1) - first
    if (sequence == tl.num_programs(2) - 1) & (split == 0) & (tl.program_id(1) % TILES == 0):
        clear_rows(out_ptr, head, first + num_rows, total_rows, NUM_KV_HEADS, GROUP, VALUE_DIM)

    packed = (tl.program_id(1) % TILES) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = (first + packed // GROUP).to(tl.int64)
    row_inside = packed < num_rows * GROUP
    heads = head * GROUP + packed % GROUP
    queries = queries_ptr + rows * query_row_stride + heads * query_head_stride
    limits = context - num_rows + packed // GROUP
    columns = tl.arange(0, BLOCK_V)
    targets = out_ptr + (rows * (NUM_KV_HEADS * GROUP) + heads)[:, None] * VALUE_DIM
    targets += columns[None, :]
    mask = row_inside[:, None] & (columns < VALUE_DIM)[None, :]

    num_tiles = tl.cdiv(context, BLOCK_N)
    tiles_each = tl.cdiv(num_tiles, SPLITS)
    begin = split * tiles_each * BLOCK_N
    if begin < context:
        out, maximum, total = _partial_attention(
            queries, row_inside,
            keys_ptr + head.to(tl.int64) * key_head_stride,
            values_ptr + head.to(tl.int64) * value_head_stride,
            tables_ptr + sequence.to(tl.int64) * table_stride, limits,
            begin, tl.minimum(begin + tiles_each * BLOCK_N, context), context, scale,
            key_block_stride, key_token_stride, value_block_stride, value_token_stride,
            KEY_DIM, VALUE_DIM, BLOCK_TOKENS, SHARED, MAIN, REST, BLOCK_V, BLOCK_M, BLOCK_N,
            STAGES, PRECISION,
        )  # fmt: skip
        if SPLITS == 1:
            tl.store(targets, out / total[:, None], mask=mask)
        else:
            unit = sequence * tl.num_programs(1) + tl.program_id(1)
            _leave_part(
                out, maximum, total, mask, targets, split, tl.cdiv(num_tiles, tiles_each),
                partial_ptr + unit.to(tl.int64) * (SPLITS * BLOCK_M * BLOCK_V),
                stats_ptr + unit.to(tl.int64) * (SPLITS * BLOCK_M * 2),
                arrivals_ptr + unit, BLOCK_V, BLOCK_M, SPLITS,
            )  # fmt: skip
    elif context == 0 and split == 0:
        tl.store(targets, tl.zeros([BLOCK_M, BLOCK_V], tl.float32), mask=mask)


class SplitAttention:
    """Launches the kernel; owns the counters by which a unit's programs find the last of them.

    Counters are zero between launches, so one stream at a time may use an instance.
    """

    def __init__(self, launch: Launch, device: torch.device) -> None:
        """Allocate the counters here, outside any graph, since they outlive a step."""
        self._launch = launch
        self._arrivals = torch.zeros(_MAX_SPLIT_UNITS, dtype=torch.int32, device=device)

    def attend(
        self,
        queries: torch.Tensor,
        out: torch.Tensor,
        *,
        kv: LayerKV,
        query_starts: torch.Tensor,
        context_lens: torch.Tensor,
        block_tables: torch.Tensor,
        max_rows: int,
        total_rows: int,
        scale: float,
    ) -> None:
        """Attend for sequences of at most `max_rows` rows each; (rows, heads, dim) in and out.

        With `max_rows` 1 sequence i is row i, and `query_starts` is not read. Rows after the last
        sequence's, up to `total_rows`, are padding and are zeroed.
        """
        num_sequences = context_lens.shape[0]
        num_heads, key_dim = queries.shape[1:]
        num_kv_heads, value_dim = kv.keys.shape[1], kv.values.shape[3]
        group = num_heads // num_kv_heads
        packed = power_of_two(max_rows * group)
        block_m = min(max(packed, _MIN_ROWS), MAX_ROWS)
        tiles = ceil_div(max_rows * group, block_m)
        units = num_sequences * num_kv_heads * tiles
        shape = _tiles(key_dim, value_dim, queries.dtype)
        max_tiles = block_tables.shape[1] * kv.block_tokens // shape["BLOCK_N"]
        splits = self._num_splits(units, max_tiles)
        parts = (units, splits, block_m) if splits > 1 else (0, 0, 0)
        partial = torch.empty((*parts, shape["BLOCK_V"]), device=out.device)
        stats = torch.empty((*parts, 2), device=out.device)
        self._launch(
            _split_kernel,
            (splits, num_kv_heads * tiles, num_sequences),
            queries,
            kv.keys,
            kv.values,
            out,
            partial,
            stats,
            self._arrivals,
            query_starts,
            context_lens,
            block_tables,
            block_tables.stride(0),
            total_rows,
            *queries.stride()[:2],
            scale * LOG2_E,
            *kv.keys.stride()[:3],
            *kv.values.stride()[:3],
            NUM_KV_HEADS=num_kv_heads,
            GROUP=group,
            KEY_DIM=key_dim,
            VALUE_DIM=value_dim,
            BLOCK_TOKENS=kv.block_tokens,
            SHARED=kv.values.data_ptr() == kv.keys.data_ptr() and value_dim == shape["MAIN"],
            **shape,
            ONE_ROW=max_rows == 1,
            TILES=tiles,
            BLOCK_M=block_m,
            SPLITS=splits,
            PRECISION=precision(queries.dtype),
        )

    def _num_splits(self, units: int, max_tiles: int) -> int:
        """Choose by the batch alone: a captured step must serve any context."""
        wanted = ceil_div(self._launch.num_processors * _PROGRAMS_PER_PROCESSOR, units)
        if units > _MAX_SPLIT_UNITS:
            return 1
        return int(min(power_of_two(min(wanted, max(max_tiles, 1))), _MAX_SPLITS))


@cache
def _tiles(key_dim: int, value_dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Choose the tile sizes, so that a tile's operands fit in shared memory several times over.

    Block tables are read a stage ahead of the keys they lead to: 5 stages hold two tiles of keys.
    """
    blocks = head_blocks(key_dim, value_dim)
    bytes_per_key = (blocks["MAIN"] + blocks["REST"] + blocks["BLOCK_V"]) * dtype.itemsize
    if bytes_per_key <= 512:
        return {**blocks, "BLOCK_N": 64, "STAGES": 4, "num_warps": 4}
    if bytes_per_key <= 1024:
        return {**blocks, "BLOCK_N": 32, "STAGES": 4, "num_warps": 4}
    return {**blocks, "BLOCK_N": 32 if dtype.itemsize == 2 else 16, "STAGES": 3, "num_warps": 8}
