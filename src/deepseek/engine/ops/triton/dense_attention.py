"""Attention of one long fresh prompt, by cuDNN.

cuDNN's kernel is specialised by warps as Triton's cannot be, and reaches 570 TFLOP/s on an H100
where ours reaches 450 (8,192 tokens of Llama-8B's shape). It knows no block tables, so keys and
values are gathered first (2 % of its time), and it builds a plan for every new shape (some 50 ms),
so rows are padded to a few lengths.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# Triton types a kernel's arguments where it is launched.

import torch
import triton
import triton.language as tl
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from deepseek.engine.batch import LayerKV, StepBatch
from deepseek.engine.ops.triton.launching import Launch, ceil_div, power_of_two, wait_for_inputs

_MIN_ROWS = 4096
"""Below, the gain is under 2 % of a step."""
_ROW_STEP = 512
_GATHERED_ROWS = 64
_MAX_DIM = 128
"""Widest head that cuDNN's fast kernel takes."""


@triton.jit(do_not_specialize=["table_ptr", "num_tokens", "num_rows"])
def _gather_kernel(
    state_ptr,
    out_ptr,
    table_ptr,
    num_tokens,
    num_rows,
    block_stride,
    head_stride,
    token_stride,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Copy BLOCK_ROWS rows of one head to (heads, num_rows, DIM); zeros from `num_tokens` on."""
    wait_for_inputs(OVERLAP)
    head = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    stored = rows < num_tokens
    blocks = tl.load(table_ptr + rows // BLOCK_TOKENS, mask=stored, other=0).to(tl.int64)
    source = state_ptr + head * head_stride + blocks * block_stride
    source += rows % BLOCK_TOKENS * token_stride
    columns = tl.arange(0, BLOCK_DIM)[None, :]
    mask = stored[:, None] & (columns < DIM)
    tile = tl.load(source[:, None] + columns, mask=mask, other=0.0)
    targets = out_ptr + (head * num_rows + rows[:, None]) * DIM + columns
    tl.store(targets, tile, mask=(rows < num_rows)[:, None] & (columns < DIM))


def takes(queries: torch.Tensor, batch: StepBatch, kv: LayerKV) -> bool:
    """Say whether the step is one prompt from its beginning, and worth it."""
    num_rows, _, dim = queries.shape
    is_fresh = batch.num_decodes == 0 and batch.max_context_len == batch.max_query_rows
    is_alone = batch.context_lens.shape[0] == 1 and num_rows == batch.max_query_rows
    is_plain = kv.keys.shape == kv.values.shape and dim % 8 == 0 and dim <= _MAX_DIM
    is_half = queries.itemsize == 2 and kv.keys.dtype == queries.dtype
    return is_fresh and is_alone and is_plain and is_half and num_rows >= _MIN_ROWS


def attend_prompt(
    launch: Launch, queries: torch.Tensor, *, batch: StepBatch, kv: LayerKV, scale: float
) -> torch.Tensor:
    """Causal attention of the rows of one prompt over themselves; (rows, heads, dim)."""
    num_rows = queries.shape[0]
    padded = ceil_div(num_rows, _ROW_STEP) * _ROW_STEP
    keys, values = (
        _gathered(launch, state, batch=batch, num_rows=padded) for state in (kv.keys, kv.values)
    )
    queries = pad(queries, (0, 0, 0, 0, 0, padded - num_rows)) if padded > num_rows else queries
    # Rows of padding come last: no other row sees their keys.
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        out = scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            keys[None],
            values[None],
            is_causal=True,
            scale=scale,
            enable_gqa=True,
        )
    return out[0].transpose(0, 1)[:num_rows]


def _gathered(
    launch: Launch, state: torch.Tensor, *, batch: StepBatch, num_rows: int
) -> torch.Tensor:
    """Return the first sequence's keys (or values) as (kv_heads, num_rows, dim)."""
    num_heads, block_tokens, dim = state.shape[1:]
    out = torch.empty((num_heads, num_rows, dim), dtype=state.dtype, device=state.device)
    launch(
        _gather_kernel,
        (ceil_div(num_rows, _GATHERED_ROWS), num_heads, 1),
        state,
        out,
        batch.block_tables,
        batch.max_context_len,
        num_rows,
        *state.stride()[:3],
        DIM=dim,
        BLOCK_DIM=power_of_two(dim),
        BLOCK_TOKENS=block_tokens,
        BLOCK_ROWS=_GATHERED_ROWS,
        num_warps=4,
    )
    return out
