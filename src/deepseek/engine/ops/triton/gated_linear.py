"""Gate, up and activation of a gated MLP in one kernel, for the many rows of prompts.

The product of the gate's and the up layer's weights is the widest activation of a step: 470 MB for
8,192 rows of Llama-8B's shape, written once and read once. Here each program makes a tile of both
products, and only `silu(gate) * up` leaves it: 1.4 % of such a step, and half the memory. Under
lasting load the card's power is the limit, and a pipeline of three stages draws less of it than one
of four (210 and 216 ms a step), though alone they are equally fast.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# Triton types a kernel's arguments where it is launched.

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from deepseek.engine.ops.triton.launching import Launch, ceil_div, wait_for_inputs

MIN_ROWS = 4096
"""Below, the vendor's product and a kernel for the activation are as fast."""
_BLOCK_M = 128
_BLOCK_N = 128
_BLOCK_K = 64
_STAGES = 3
_GROUP = 16
"""Tiles of rows that are made side by side, so that the weights they share are read once."""
_ALIGNMENT_BYTES = 16
"""The copy engine reads rows that begin at multiples of this."""


@triton.jit
def _place(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Return the tile's row and column: GROUP rows of tiles are walked column by column."""
    width = GROUP * tiles_n
    first = tile // width * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    return first + tile % width % height, tile % width // height


@triton.jit(do_not_specialize=["num_rows"])
def _gated_linear_kernel(
    inputs,
    weight,
    out,
    num_rows,
    width_in,
    width_out,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Every so many-th tile of BLOCK_M rows by BLOCK_N outputs. `inputs`, `weight` and `out` are
    descriptors: what lies past a tensor's end is read as zero and not written."""
    wait_for_inputs(OVERLAP)
    tiles_m, tiles_n = tl.cdiv(num_rows, BLOCK_M), tl.cdiv(width_out, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        tile_m, tile_n = _place(tile, tiles_m, tiles_n, GROUP)
        row, column = tile_m * BLOCK_M, tile_n * BLOCK_N
        gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k in tl.range(0, width_in, BLOCK_K, num_stages=STAGES):
            values = inputs.load([row, k])
            gate = tl.dot(values, weight.load([column, k]).T, gate)
            up = tl.dot(values, weight.load([width_out + column, k]).T, up)
        gated = gate * tl.sigmoid(gate) * up
        out.store([row, column], gated.to(out.dtype))


def takes(launch: Launch, inputs: torch.Tensor, weight: torch.Tensor) -> bool:
    """Say whether the kernel can multiply these, and is the faster way."""
    num_rows, width_in = inputs.shape
    is_fit = launch.is_hopper and launch.has_large_tiles and inputs.itemsize == 2
    width_out = weight.shape[0] // 2
    is_aligned = all(w * inputs.itemsize % _ALIGNMENT_BYTES == 0 for w in (width_in, width_out))
    return num_rows >= MIN_ROWS and is_fit and is_aligned and inputs.is_contiguous()


def gated_linear(launch: Launch, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return silu(inputs @ gate.T) * (inputs @ up.T) for a `weight` that holds gate, then up."""
    num_rows, width_in = inputs.shape
    width_out = weight.shape[0] // 2
    out = torch.empty((num_rows, width_out), dtype=inputs.dtype, device=inputs.device)
    num_tiles = ceil_div(num_rows, _BLOCK_M) * ceil_div(width_out, _BLOCK_N)
    launch(
        _gated_linear_kernel,
        (min(num_tiles, launch.num_processors), 1, 1),
        TensorDescriptor.from_tensor(inputs, [_BLOCK_M, _BLOCK_K]),
        TensorDescriptor.from_tensor(weight, [_BLOCK_N, _BLOCK_K]),
        TensorDescriptor.from_tensor(out, [_BLOCK_M, _BLOCK_N]),
        num_rows,
        width_in,
        width_out,
        BLOCK_M=_BLOCK_M,
        BLOCK_N=_BLOCK_N,
        BLOCK_K=_BLOCK_K,
        GROUP=_GROUP,
        STAGES=_STAGES,
        num_warps=8,
    )
    return out
