"""Attention of many query rows: prompts, and chunks of prompts over what is stored already.

One flash attention kernel (arXiv:2307.08691) over paged or packed keys. The query heads that share
a key head lie side by side in one tile of rows, so a tile reaches over few positions and little is
computed above the diagonal.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# Triton types a kernel's arguments where it is launched.

from typing import Any

import torch
import triton
import triton.language as tl

from deepseek.engine.batch import LayerKV
from deepseek.engine.ops.triton.launching import Launch, wait_for_inputs
from deepseek.engine.ops.triton.paging import (
    LOG2_E,
    VARYING,
    can_describe,
    describe,
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
    keys,
    values,
    out_ptr,
    query_starts_ptr,
    context_lens_ptr,
    tables_ptr,
    table_stride,
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
    DESCRIBED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """BLOCK_M rows (positions times grouped heads) of one sequence and one key head.

    DESCRIBED: `keys` and `values` are descriptors of (blocks * heads * BLOCK_TOKENS, dim), by which
    the copy engine fetches tiles; else pointers.
    """
    wait_for_inputs(OVERLAP)
    head, sequence = tl.program_id(1), tl.program_id(2)
    # The last rows see most keys: their programs start first, the short ones fill the end.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    first = tl.load(query_starts_ptr + sequence)
    num_rows = tl.load(query_starts_ptr + sequence + 1) - first
    context = num_rows
    if BLOCK_TOKENS > 0:
        context = tl.load(context_lens_ptr + sequence)
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
                keys, table, start, context, head, first,
                key_block_stride, key_head_stride, key_token_stride,
                0, MAIN, KEY_DIM, NUM_KV_HEADS, BLOCK_TOKENS, DESCRIBED, BLOCK_N, False,
            )  # fmt: skip
            scores = tl.dot(query, key.T, input_precision=PRECISION)
            if REST > 0:
                key_rest = fetch_tile(
                    keys, table, start, context, head, first,
                    key_block_stride, key_head_stride, key_token_stride,
                    MAIN, REST, KEY_DIM, NUM_KV_HEADS, BLOCK_TOKENS, DESCRIBED, BLOCK_N, False,
                )  # fmt: skip
                scores = tl.dot(query_rest, key_rest.T, scores, input_precision=PRECISION)
            if MASKED:
                positions = start + tl.arange(0, BLOCK_N)
                scores = tl.where(positions[None, :] <= limits[:, None], scores, float("-inf"))
            weights, maximum, total, factor = softmax_step(scores, maximum, total, scale)
            out = out * factor[:, None]
            value = fetch_tile(
                values, table, start, context, head, first,
                value_block_stride, value_head_stride, value_token_stride,
                0, BLOCK_V, VALUE_DIM, NUM_KV_HEADS, BLOCK_TOKENS, DESCRIBED, BLOCK_N, MASKED,
            )  # fmt: skip
            out = tl.dot(weights.to(value.dtype), value, out, input_precision=PRECISION)

    columns = tl.arange(0, BLOCK_V)
    targets = out_ptr + (rows * (NUM_KV_HEADS * GROUP) + heads)[:, None] * VALUE_DIM
    mask = row_inside[:, None] & (columns < VALUE_DIM)[None, :]
    total = tl.where(total > 0, total, 1.0)  # padding has seen nothing
    tl.store(targets + columns[None, :], out / total[:, None], mask=mask)


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


@triton.jit(do_not_specialize=["end_ptr", "num_rows"])
def _clear_kernel(
    out_ptr,
    end_ptr,
    num_rows,
    width,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    wait_for_inputs(OVERLAP)
    end = tl.load(end_ptr)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cleared = ((rows >= end) & (rows < num_rows))[:, None]
    if (tl.program_id(0) + 1) * ROWS > end:
        for first in range(0, width, BLOCK):
            columns = (first + tl.arange(0, BLOCK))[None, :]
            targets = out_ptr + rows.to(tl.int64)[:, None] * width + columns
            tl.store(targets, 0.0, mask=cleared & (columns < width))


def clear_padding(launch: Launch, out: torch.Tensor, query_starts: torch.Tensor) -> None:
    """Zero the rows of (rows, heads, dim) that belong to no sequence."""
    num_rows, width = out.shape[0], out.shape[1] * out.shape[2]
    _clear_kernel[(triton.cdiv(num_rows, _MIN_ROWS),)](
        out,
        query_starts[-1:],
        num_rows,
        width,
        ROWS=_MIN_ROWS,
        BLOCK=128,
        num_warps=4,
        **launch.options,
    )


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
    """Causal attention over paged state, for sequences of up to `max_rows` rows."""
    num_heads, key_dim = queries.shape[1:]
    num_kv_heads, value_dim = kv.keys.shape[1], kv.values.shape[3]
    group = num_heads // num_kv_heads
    tiles = _tiles(launch, max_rows * group, dims=(key_dim, value_dim), dtype=queries.dtype)
    described = launch.has_copy_engine and can_describe(kv, tiles)
    keys, values = kv.keys, kv.values
    if described:
        keys, values = (describe(part, tiles["BLOCK_N"]) for part in (keys, values))
    grid = (triton.cdiv(max_rows * group, tiles["BLOCK_M"]), num_kv_heads, context_lens.shape[0])
    _chunk_kernel[grid](
        queries,
        keys,
        values,
        out,
        query_starts,
        context_lens,
        block_tables,
        block_tables.stride(0),
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
        DESCRIBED=described,
        **tiles,
        **launch.options,
    )


def attend_packed(
    launch: Launch, qkv: torch.Tensor, *, starts: torch.Tensor, max_len: int, num_heads: int
) -> torch.Tensor:
    """See `Ops.attend_packed`."""
    num_tokens = qkv.shape[0]
    dim = qkv.shape[1] // (3 * num_heads)
    queries, keys, values = qkv.view(num_tokens, 3, num_heads, dim).unbind(1)
    out = torch.empty((num_tokens, num_heads * dim), dtype=qkv.dtype, device=qkv.device)
    tiles = _tiles(launch, max_len, dims=(dim, dim), dtype=qkv.dtype)
    _chunk_kernel[(triton.cdiv(max_len, tiles["BLOCK_M"]), num_heads, starts.shape[0] - 1)](
        queries,
        keys,
        values,
        out,
        starts,
        starts,
        starts,
        0,
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
        DESCRIBED=False,
        **tiles,
        **launch.options,
    )
    return out


def _tiles(
    launch: Launch, num_rows: int, *, dims: tuple[int, int], dtype: torch.dtype
) -> dict[str, Any]:
    """Choose the tile sizes, so that a tile's operands fit in shared memory and registers.

    Five stages hold two tiles of keys and values besides the one in use: block tables are read
    ahead of the keys they lead to.
    """
    shape = head_blocks(*dims)
    width = max(shape["MAIN"], shape["BLOCK_V"])
    if dtype.itemsize > 2:  # no tensor cores: small tiles, or all is spilled
        block_m, block_n, stages, warps = 16, 16 if width > 128 else 32, 1, 8
    elif width <= 128:
        block_m, block_n, stages, warps = 128, 64, 5 if launch.has_large_tiles else 2, 8
    elif width <= 256:
        block_m, block_n, stages, warps = 64, 64, 2, 8
    else:
        block_m, block_n, stages, warps = 64, 32, 2, 8
    block_m = min(block_m, max(triton.next_power_of_2(num_rows), _MIN_ROWS))
    return {
        **shape,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "STAGES": stages,
        "PRECISION": precision(dtype),
        "num_warps": warps,
    }
