"""What the attention kernels share: tiles of keys, rows of grouped queries, online softmax."""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# Triton types a kernel's arguments where it is launched.

import math

import torch
import triton
import triton.language as tl

from deepseek.engine.ops.triton.launching import power_of_two

LOG2_E = math.log2(math.e)
"""Softmax is computed with powers of two, which the device has an instruction for."""
_MIN_BLOCK = 16
"""Shortest side of a matrix product's operand."""
VARYING = ("query_starts_ptr", "context_lens_ptr", "tables_ptr", "table_stride", "total_rows")
"""Arguments whose alignment changes from step to step: a kernel compiled for each would stop the
service for a second in the middle of its work."""


@triton.jit
def tile_offsets(
    table_ptr,
    start,
    end,
    first_token,
    block_stride,
    token_stride,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Return the element offsets of the keys at `start` to `start + BLOCK_N`.

    BLOCK_TOKENS 0: keys are packed, the sequence's first is `first_token`. Positions from `end` on
    give an offset that may be read.
    """
    lanes = tl.arange(0, BLOCK_N)
    if BLOCK_TOKENS == 0:
        tokens = first_token + tl.minimum(start + lanes, end - 1)
        offsets = tokens.to(tl.int64) * token_stride
    elif BLOCK_TOKENS % BLOCK_N == 0:  # the tile lies in one block
        block = tl.load(table_ptr + start // BLOCK_TOKENS).to(tl.int64)
        offsets = block * block_stride + (start % BLOCK_TOKENS + lanes) * token_stride
    else:
        positions = start + lanes
        blocks = tl.load(table_ptr + positions // BLOCK_TOKENS, mask=positions < end, other=0)
        offsets = blocks.to(tl.int64) * block_stride + positions % BLOCK_TOKENS * token_stride
    return offsets


@triton.jit
def load_columns(pointers, inside, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    """Load columns FIRST to FIRST + WIDTH of rows of DIM; zeros past DIM and where not `inside`."""
    columns = FIRST + tl.arange(0, WIDTH)
    if FIRST + WIDTH <= DIM:
        return tl.load(pointers[:, None] + columns[None, :], mask=inside[:, None], other=0.0)
    mask = inside[:, None] & (columns < DIM)[None, :]
    return tl.load(pointers[:, None] + columns[None, :], mask=mask, other=0.0)


@triton.jit
def load_tile(pointers, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    """The same without a mask of rows."""
    columns = FIRST + tl.arange(0, WIDTH)
    if FIRST + WIDTH <= DIM:
        return tl.load(pointers[:, None] + columns[None, :])
    return tl.load(pointers[:, None] + columns[None, :], mask=(columns < DIM)[None, :], other=0.0)


@triton.jit
def fetch_tile(
    state_ptr,
    table_ptr,
    start,
    end,
    first_token,
    block_stride,
    token_stride,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHECKED: tl.constexpr,
):
    """Return columns of the keys (or values) at `start` to `start + BLOCK_N` of one head.

    CHECKED: zeros from `end` on, where what is stored may be no number, which a weight of 0 would
    not undo.
    """
    pointers = state_ptr + tile_offsets(
        table_ptr, start, end, first_token, block_stride, token_stride, BLOCK_TOKENS, BLOCK_N
    )
    if CHECKED:
        inside = start + tl.arange(0, BLOCK_N) < end
        tile = load_columns(pointers, inside, FIRST, WIDTH, DIM)
    else:
        tile = load_tile(pointers, FIRST, WIDTH, DIM)
    return tile


@triton.jit
def clear_rows(
    out_ptr, head, begin, end, NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr
):
    """Zero what the query heads of one key head give for the rows of padding, few if any."""
    width: tl.constexpr = GROUP * DIM
    out_ptr += (begin.to(tl.int64) * NUM_KV_HEADS + head) * width
    for _ in range(begin, end):
        for first in range(0, width, 128):
            columns = first + tl.arange(0, 128)
            tl.store(out_ptr + columns, tl.zeros([128], tl.float32), mask=columns < width)
        out_ptr += NUM_KV_HEADS * width


@triton.jit
def softmax_step(scores, maximum, total, scale):
    """One step of the online softmax over raw scores; `scale` holds log2(e).

    Returns the weights of this tile, the new maximum and total, and the factor for what was
    accumulated. A row that has seen no key yet keeps a maximum of -inf and weights of 0.
    """
    new_maximum = tl.maximum(maximum, tl.max(scores, axis=1) * scale)
    shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
    weights = tl.exp2(scores * scale - shift[:, None])
    factor = tl.exp2(maximum - shift)
    return weights, new_maximum, total * factor + tl.sum(weights, axis=1), factor


def head_blocks(key_dim: int, value_dim: int) -> dict[str, int]:
    """Return the kernels' tile widths, powers of two: of keys in two parts, and of values.

    576 (a latent of 512 and 64 rotated) is 512 + 64, where one part would be 1024.
    """
    main = max(1 << (key_dim.bit_length() - 1), _MIN_BLOCK)
    rest = max(power_of_two(key_dim - main), _MIN_BLOCK) if key_dim > main else 0
    return {
        "MAIN": main,
        "REST": rest,
        "BLOCK_V": max(power_of_two(value_dim), _MIN_BLOCK),
    }


def precision(dtype: torch.dtype) -> str:
    """Return the precision of matrix products: exact for float32, of no effect for halves."""
    return "ieee" if dtype == torch.float32 else "tf32"
