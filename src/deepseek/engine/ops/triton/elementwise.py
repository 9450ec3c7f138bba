"""Norms, activations, rotary embedding and stores: kernels bound by memory, fused to read once."""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# Triton types a kernel's arguments where it is launched.

import torch
import triton
import triton.language as tl

from deepseek.engine.batch import LayerKV, StepBatch
from deepseek.engine.ops.triton.launching import Launch, ceil_div, power_of_two, wait_for_inputs

_SILU_BLOCK = 1024
_HEADS_PER_PROGRAM = 16


@triton.jit
def _rms_norm_kernel(
    states_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    states_stride,
    residual_stride,
    width,
    eps,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Norm of one row; with ADD, of its sum with the residual, which is written back."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0)
    wait_for_inputs(OVERLAP)
    values = tl.load(states_ptr + row * states_stride + columns, mask=inside, other=0.0)
    if ADD:
        residual = residual_ptr + row * residual_stride + columns
        values = (values.to(tl.float32) + tl.load(residual, mask=inside, other=0.0)).to(
            values.dtype
        )
        tl.store(residual, values, mask=inside)
    wide = values.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide) / width + eps)
    out = wide * scale * weight.to(tl.float32)
    tl.store(out_ptr + row * width + columns, out, mask=inside)


@triton.jit
def _gated_silu_kernel(
    gate_up_ptr, out_ptr, stride, width, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):
    wait_for_inputs(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_up_ptr + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * stride + width + columns, mask=inside, other=0.0)
    out = gate * tl.sigmoid(gate) * up.to(tl.float32)
    tl.store(out_ptr + row * width + columns, out, mask=inside)


@triton.jit
def _normed(first, second, weight_ptr, halves, inside, eps, DIM: tl.constexpr):
    """RMSNorm of heads whose halves are (heads, HALF) tiles."""
    squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
    scale = tl.rsqrt(squares / DIM + eps)[:, None]
    low = tl.load(weight_ptr + halves, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(weight_ptr + DIM // 2 + halves, mask=inside, other=0.0).to(tl.float32)
    return first * scale * low[None, :], second * scale * high[None, :]


@triton.jit
def _store_halves(pointers, first, second, mask, DIM: tl.constexpr):
    tl.store(pointers, first, mask=mask)
    tl.store(pointers + DIM // 2, second, mask=mask)


@triton.jit(do_not_specialize=["positions_ptr", "kv_rows_ptr"])
def _rotate_and_store_kernel(
    qkv_ptr,
    rotary_ptr,
    positions_ptr,
    kv_rows_ptr,
    query_norm_ptr,
    key_norm_ptr,
    queries_ptr,
    keys_ptr,
    values_ptr,
    qkv_stride,
    key_block_stride,
    key_head_stride,
    key_token_stride,
    value_block_stride,
    value_head_stride,
    value_token_stride,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    NORMS: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """HEADS heads of one row: queries go to the output, keys and values into their block.

    A program's heads may be of all three sorts: each store is masked by sort.
    """
    wait_for_inputs(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    halves = tl.arange(0, HALF)
    inside = halves < DIM // 2
    present = (heads < NUM_HEADS + 2 * NUM_KV_HEADS)[:, None] & inside[None, :]
    source = qkv_ptr + row * qkv_stride + heads[:, None] * DIM + halves[None, :]
    first = tl.load(source, mask=present, other=0.0).to(tl.float32)
    second = tl.load(source + DIM // 2, mask=present, other=0.0).to(tl.float32)

    is_query = (heads < NUM_HEADS)[:, None]
    is_rotated = (heads < NUM_HEADS + NUM_KV_HEADS)[:, None]
    low, high = first, second
    if NORMS:
        query_low, query_high = _normed(first, second, query_norm_ptr, halves, inside, eps, DIM)
        key_low, key_high = _normed(first, second, key_norm_ptr, halves, inside, eps, DIM)
        low = tl.where(is_query, query_low, key_low)
        high = tl.where(is_query, query_high, key_high)
    table = rotary_ptr + tl.load(positions_ptr + row) * DIM + halves
    cos = tl.load(table, mask=inside, other=0.0)[None, :]
    sin = tl.load(table + DIM // 2, mask=inside, other=0.0)[None, :]
    rotated_low, rotated_high = low * cos - high * sin, high * cos + low * sin

    out = queries_ptr + (row * NUM_HEADS + heads[:, None]) * DIM + halves[None, :]
    _store_halves(out, rotated_low, rotated_high, present & is_query, DIM)
    slot = tl.load(kv_rows_ptr + row)
    stored = present & (slot >= 0)
    block, offset = slot // BLOCK_TOKENS, slot % BLOCK_TOKENS
    kv_heads = (heads - NUM_HEADS)[:, None]
    key = block * key_block_stride + offset * key_token_stride + kv_heads * key_head_stride
    keys = keys_ptr + key + halves[None, :]
    _store_halves(keys, rotated_low, rotated_high, stored & is_rotated & (kv_heads >= 0), DIM)
    kv_heads -= NUM_KV_HEADS
    value = block * value_block_stride + offset * value_token_stride + kv_heads * value_head_stride
    _store_halves(values_ptr + value + halves[None, :], first, second, stored & ~is_rotated, DIM)


@triton.jit(do_not_specialize=["kv_rows_ptr"])
def _store_kernel(
    source_ptr,
    kv_rows_ptr,
    target_ptr,
    source_row_stride,
    source_head_stride,
    block_stride,
    head_stride,
    token_stride,
    BLOCK_TOKENS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    wait_for_inputs(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    slot = tl.load(kv_rows_ptr + row)
    if slot >= 0:
        columns = tl.arange(0, BLOCK_DIM)
        inside = columns < DIM
        source = source_ptr + row * source_row_stride + head * source_head_stride
        block, offset = slot // BLOCK_TOKENS, slot % BLOCK_TOKENS
        target = target_ptr + block * block_stride + head * head_stride + offset * token_stride
        tl.store(target + columns, tl.load(source + columns, mask=inside), mask=inside)


def rms_norm(
    launch: Launch,
    states: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    weight: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """Return the norm of each row; of its sum with `residual`, which is updated, where given."""
    num_rows, width = states.shape
    out = torch.empty((num_rows, width), dtype=states.dtype, device=states.device)
    other = states if residual is None else residual
    block = power_of_two(width)
    launch(
        _rms_norm_kernel,
        (num_rows, 1, 1),
        states,
        other,
        weight,
        out,
        states.stride(0),
        other.stride(0),
        width,
        eps,
        ADD=residual is not None,
        BLOCK=block,
        num_warps=min(max(block // 512, 1), 16),
    )
    return out


def gated_silu(launch: Launch, gate_up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up of rows that hold gate, then up."""
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_rows, width), dtype=gate_up.dtype, device=gate_up.device)
    grid = (num_rows, ceil_div(width, _SILU_BLOCK), 1)
    launch(
        _gated_silu_kernel,
        grid,
        gate_up,
        out,
        gate_up.stride(0),
        width,
        BLOCK=_SILU_BLOCK,
        num_warps=4,
    )
    return out


def rotate_and_store(
    launch: Launch,
    qkv: torch.Tensor,
    *,
    rotary: torch.Tensor,
    batch: StepBatch,
    kv: LayerKV,
    num_heads: int,
    head_norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
) -> torch.Tensor:
    """See `Ops.rotate_and_store`."""
    num_rows = qkv.shape[0]
    num_kv_heads, dim = kv.keys.shape[1], kv.keys.shape[3]
    queries = torch.empty((num_rows, num_heads, dim), dtype=qkv.dtype, device=qkv.device)
    query_norm, key_norm = (qkv, qkv) if head_norms is None else head_norms
    total_heads = num_heads + 2 * num_kv_heads
    heads = min(_HEADS_PER_PROGRAM, power_of_two(total_heads))
    launch(
        _rotate_and_store_kernel,
        (num_rows, ceil_div(total_heads, heads), 1),
        qkv,
        rotary,
        batch.positions,
        batch.kv_rows,
        query_norm,
        key_norm,
        queries,
        kv.keys,
        kv.values,
        qkv.stride(0),
        *kv.keys.stride()[:3],
        *kv.values.stride()[:3],
        eps,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        DIM=dim,
        BLOCK_TOKENS=kv.block_tokens,
        NORMS=head_norms is not None,
        HEADS=heads,
        HALF=power_of_two(dim // 2),
        num_warps=4,
    )
    return queries


def store(launch: Launch, source: torch.Tensor, *, target: torch.Tensor, batch: StepBatch) -> None:
    """Store (rows, heads, dim) in the paged `target` where the batch says."""
    num_rows, num_heads, dim = source.shape
    block_dim = power_of_two(dim)
    launch(
        _store_kernel,
        (num_rows, num_heads, 1),
        source,
        batch.kv_rows,
        target,
        *source.stride()[:2],
        *target.stride()[:3],
        BLOCK_TOKENS=target.shape[2],
        DIM=dim,
        BLOCK_DIM=block_dim,
        num_warps=1 if block_dim <= 256 else 2,
    )
