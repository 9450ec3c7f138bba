"""Attention of many query rows: prompts, and chunks of prompts over what is stored already.

One flash attention kernel (arXiv:2307.08691) over paged or packed keys. The query heads that share
a key head lie side by side in one tile of rows, so a tile reaches over few positions and little is
computed above the diagonal.
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

_MIN_ROWS = 16
"""Rows of the smallest matrix product."""


@triton.jit(do_not_specialize=VARYING)
def _chunk_kernel(
    queries_ptr,
    keys_ptr,
    values_ptr,
    out_ptr,
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
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """BLOCK_M rows (positions times grouped heads) of one sequence and one key head."""
    wait_for_inputs(OVERLAP)
    head, sequence = tl.program_id(1), tl.program_id(2)
    # The last rows see most keys: their programs start first, the short ones fill the end.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    first = tl.load(query_starts_ptr + sequence)
    num_rows = tl.load(query_starts_ptr + sequence + 1) - first
    context = num_rows
    if BLOCK_TOKENS > 0:
        context = tl.load(context_lens_ptr + sequence)
    if (sequence == tl.num_programs(2) - 1) & (tile == 0):
        clear_rows(out_ptr, head, first + num_rows, total_rows, NUM_KV_HEADS, GROUP, VALUE_DIM)
    if tile * BLOCK_M >= num_rows * GROUP:
        return
    packed = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = (first + packed // GROUP).to(tl.int64)
    row_inside = packed < num_rows * GROUP
    heads = head * GROUP + packed % GROUP
    queries = queries_ptr + rows * query_row_stride + heads * query_head_stride
    query = load_columns(queries, row_inside, 0, MAIN, KEY_DIM)
    query_rest = query
    if REST > 0:
        query_rest = load_columns(queries, row_inside, MAIN, REST, KEY_DIM)
    table = tables_ptr + sequence.to(tl.int64) * table_stride
    keys, values = _of_head(keys_ptr, values_ptr, head, key_head_stride, value_head_stride)
    limits, unmasked, end = _visible(
        tile * BLOCK_M, packed // GROUP, num_rows, context, GROUP, CAUSAL, BLOCK_M, BLOCK_N
    )

    maximum, total = tl.full([BLOCK_M], float("-inf"), tl.float32), tl.zeros([BLOCK_M], tl.float32)
    out = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    for MASKED in tl.static_range(2):  # first the tiles that every row sees whole
        for start in tl.range(
            unmasked if MASKED else 0, end if MASKED else unmasked, BLOCK_N, num_stages=STAGES
        ):
            key = fetch_tile(
                keys, table, start, context, first, key_block_stride, key_token_stride,
                0, MAIN, KEY_DIM, BLOCK_TOKENS, BLOCK_N, False,
            )  # fmt: skip
            scores = tl.dot(query, key.T, input_precision=PRECISION)
            if REST > 0:
                key_rest = fetch_tile(
                    keys, table, start, context, first, key_block_stride, key_token_stride,
                    MAIN, REST, KEY_DIM, BLOCK_TOKENS, BLOCK_N, False,
                )  # fmt: skip
                scores = tl.dot(query_rest, key_rest.T, scores, input_precision=PRECISION)
            if MASKED:
                positions = start + tl.arange(0, BLOCK_N)
                scores = tl.where(positions[None, :] <= limits[:, None], scores, float("-inf"))
            weights, maximum, total, factor = softmax_step(scores, maximum, total, scale)
            out = out * factor[:, None]
            value = fetch_tile(
                values, table, start, context, first, value_block_stride, value_token_stride,
                0, BLOCK_V, VALUE_DIM, BLOCK_TOKENS, BLOCK_N, MASKED,
            )  # fmt: skip
            out = tl.dot(weights.to(value.dtype), value, out, input_precision=PRECISION)

    query_heads = rows * (NUM_KV_HEADS * GROUP) + heads
    _store_normed(out_ptr, query_heads, out, total, row_inside, VALUE_DIM, BLOCK_V)


@triton.jit
def _store_normed(
    out_ptr, query_heads, out, total, inside, VALUE_DIM: tl.constexpr, BLOCK_V: tl.constexpr
):
    """Store weighted sums over their total; padding has seen nothing and gets zeros."""
    columns = tl.arange(0, BLOCK_V)
    mask = inside[:, None] & (columns < VALUE_DIM)[None, :]
    targets = out_ptr + query_heads[:, None] * VALUE_DIM + columns[None, :]
    tl.store(targets, out / tl.where(total > 0, total, 1.0)[:, None], mask=mask)


@triton.jit
def _of_head(keys_ptr, values_ptr, head, key_head_stride, value_head_stride):
    head = head.to(tl.int64)
    return keys_ptr + head * key_head_stride, values_ptr + head * value_head_stride


@triton.jit
def _visible(
    first_packed,
    row,
    num_rows,
    context,
    GROUP: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Return the last position each row sees, and where the tiles end that all see, and any."""
    if CAUSAL:
        past = context - num_rows
        limits = past + row
        unmasked = (past + first_packed // GROUP + 1) // BLOCK_N * BLOCK_N
        end = tl.minimum(past + (first_packed + BLOCK_M - 1) // GROUP + 1, context)
    else:
        limits = tl.full([BLOCK_M], 0, tl.int32) + context - 1
        unmasked = context // BLOCK_N * BLOCK_N
        end = context
    return limits, tl.minimum(unmasked, end), end


def attend_chunks(
    launch: Launch,
    queries: torch.Tensor,
    out: torch.Tensor,
    *,
    kv: LayerKV,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    max_rows: int,
    scale: float,
) -> None:
    """Causal attention over paged state, for sequences of up to `max_rows` rows.

    Rows after the last sequence's are padding and are zeroed.
    """
    num_heads, key_dim = queries.shape[1:]
    num_kv_heads, value_dim = kv.keys.shape[1], kv.values.shape[3]
    group = num_heads // num_kv_heads
    tiles = _tiles(key_dim, value_dim, queries.dtype, has_large_tiles=launch.has_large_tiles)
    grid = (ceil_div(max_rows * group, tiles["BLOCK_M"]), num_kv_heads, context_lens.shape[0])
    launch(
        _chunk_kernel,
        grid,
        queries,
        kv.keys,
        kv.values,
        out,
        query_starts,
        context_lens,
        block_tables,
        block_tables.stride(0),
        out.shape[0],
        *queries.stride()[:2],
        scale * LOG2_E,
        *kv.keys.stride()[:3],
        *kv.values.stride()[:3],
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        KEY_DIM=key_dim,
        VALUE_DIM=value_dim,
        BLOCK_TOKENS=kv.block_tokens,
        CAUSAL=True,
        **tiles,
    )


def attend_packed(
    launch: Launch, qkv: torch.Tensor, *, starts: torch.Tensor, max_len: int, num_heads: int
) -> torch.Tensor:
    """See `Ops.attend_packed`."""
    num_tokens = qkv.shape[0]
    dim = qkv.shape[1] // (3 * num_heads)
    queries, keys, values = qkv.view(num_tokens, 3, num_heads, dim).unbind(1)
    out = torch.empty((num_tokens, num_heads * dim), dtype=qkv.dtype, device=qkv.device)
    tiles = _tiles(dim, dim, qkv.dtype, has_large_tiles=launch.has_large_tiles)
    # Sentences are short.
    block_m = min(tiles["BLOCK_M"], max(power_of_two(max_len), _MIN_ROWS))
    launch(
        _chunk_kernel,
        (ceil_div(max_len, block_m), num_heads, starts.shape[0] - 1),
        queries,
        keys,
        values,
        out,
        starts,
        starts,
        starts,
        0,
        num_tokens,
        *queries.stride()[:2],
        dim**-0.5 * LOG2_E,
        0,
        keys.stride(1),
        keys.stride(0),
        0,
        values.stride(1),
        values.stride(0),
        NUM_KV_HEADS=num_heads,
        GROUP=1,
        KEY_DIM=dim,
        VALUE_DIM=dim,
        BLOCK_TOKENS=0,
        CAUSAL=False,
        **{**tiles, "BLOCK_M": block_m},
    )
    return out


@cache
def _tiles(
    key_dim: int, value_dim: int, dtype: torch.dtype, *, has_large_tiles: bool
) -> dict[str, Any]:
    """Choose the tile sizes, so that a tile's operands fit in shared memory and registers.

    Five stages hold two tiles of keys and values besides the one in use: block tables are read
    ahead of the keys they lead to.
    """
    shape = head_blocks(key_dim, value_dim)
    width = max(shape["MAIN"], shape["BLOCK_V"])
    if dtype.itemsize > 2:  # no tensor cores: small tiles, or all is spilled
        block_m, block_n, stages = max(16, min(64, 4096 // width)), 16 if width > 128 else 32, 1
    elif width <= 128:
        block_m, block_n, stages = 128, 64, 5 if has_large_tiles else 2
    elif width <= 256:
        block_m, block_n, stages = 64, 64, 2
    else:
        block_m, block_n, stages = 64, 32, 2
    return {
        **shape,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "STAGES": stages,
        "PRECISION": precision(dtype),
        "num_warps": 8,
    }
