"""Linear layers of a few rows: what counts is to read the weights once, at full speed.

A matrix product of one to sixteen rows is bound by the memory that its weights lie in. The kernel
streams them through the tensor cores with enough reads in flight, splits the sum over programs
where the output alone would leave processors idle, and is set up while the kernel before it still
runs. Larger batches go to the vendor's library, which is at its best there.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# Triton types a kernel's arguments where it is launched.

from functools import cache

import torch
import triton
import triton.language as tl
from torch.nn import functional

from deepseek.engine.ops.triton import gated_linear
from deepseek.engine.ops.triton.launching import Launch, ceil_div, power_of_two, wait_for_inputs

MAX_ROWS = 16
"""Rows up to which the kernel is used; see benchmarks/gpu_kernels.py."""
_BLOCK_N = 128
_BLOCK_K = 128
_STAGES = 3
_PROGRAMS_PER_PROCESSOR = 2
"""Programs wanted at least; more even out their end, fewer cost less to add up."""
_MAX_SPLITS = 8
_MIN_ROWS = 16
_MIN_ADDED_ROWS = 2048
"""Rows from which adding inside the product pays: below, the output lies in the second cache."""
_MIN_TILES = 4
"""Steps of the sum that a program should have, to be worth its start."""


@triton.jit
def _sum_splits(partial, active, stride, mask, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """Add up the parts in order: the same result every time."""
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for split in range(active):
        total += tl.load(partial + split * stride, mask=mask, other=0.0, cache_modifier=".cg")
    return total


@triton.jit(do_not_specialize=["num_rows"])
def _linear_kernel(
    inputs_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    partial_ptr,
    arrivals_ptr,
    num_rows,
    width_in,
    width_out,
    inputs_stride,
    tiles_each,
    IS_SPLIT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One part of the sum for BLOCK_N outputs of all rows; the tile is transposed, so that the
    many weights fill the tensor cores' rows and the few inputs their columns."""
    tile, split = tl.program_id(0), tl.program_id(1)
    outputs = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.arange(0, BLOCK_M)
    ks = tl.arange(0, BLOCK_K)
    begin = split * tiles_each * BLOCK_K
    end = tl.minimum(begin + tiles_each * BLOCK_K, width_in)
    weights = weight_ptr + tl.minimum(outputs, width_out - 1).to(tl.int64)[:, None] * width_in
    wait_for_inputs(OVERLAP)

    inputs = inputs_ptr + tl.minimum(rows, num_rows - 1)[:, None] * inputs_stride
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        columns = (start + ks)[None, :]
        if EVEN:
            weight = tl.load(weights + columns)
            values = tl.load(inputs + columns)
        else:
            weight = tl.load(weights + columns, mask=columns < end, other=0.0)
            values = tl.load(inputs + columns, mask=columns < end, other=0.0)
        total = tl.dot(weight, values.T, total, input_precision="ieee")

    place = rows[None, :] * width_out + outputs[:, None]
    mask = (rows < num_rows)[None, :] & (outputs < width_out)[:, None]
    is_last = True
    if IS_SPLIT:
        stride = num_rows * width_out
        tl.store(partial_ptr + split * stride + place, total, mask=mask)
        tl.debug_barrier()  # every thread's stores come before the program's arrival
        is_last = tl.atomic_add(arrivals_ptr + tile, 1, sem="acq_rel") == tl.num_programs(1) - 1
        if is_last:
            total = _sum_splits(
                partial_ptr + place, tl.num_programs(1), stride, mask, BLOCK_N, BLOCK_M
            )
            tl.store(arrivals_ptr + tile, 0)  # for the next layer
    if is_last:
        if HAS_BIAS:
            bias = tl.load(bias_ptr + outputs, mask=outputs < width_out, other=0.0)
            total += bias.to(tl.float32)[:, None]
        tl.store(out_ptr + place, total, mask=mask)


class SmallLinear:
    """Launches the kernel; owns the counters by which a tile's programs find the last of them.

    Counters are zero between launches, so one stream at a time may use an instance.
    """

    def __init__(self, device: torch.device, *, max_width_out: int = 1 << 20) -> None:
        """Allocate the counters here, outside any graph, since they outlive a step."""
        self.launch = Launch(device)
        num_tiles = ceil_div(max_width_out, _BLOCK_N)
        self._arrivals = torch.zeros(num_tiles, dtype=torch.int32, device=device)

    def takes(self, inputs: torch.Tensor) -> bool:
        """Say whether the kernel is the faster way for these (rows, in)."""
        is_fit = inputs.shape[0] <= MAX_ROWS and inputs.stride(1) == 1
        return is_fit and inputs.itemsize == 2 and self.launch.has_large_tiles

    def __call__(
        self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return (rows, out) for (rows, in) that `takes` approves of; `weight` is contiguous."""
        num_rows, width_in = inputs.shape
        width_out = weight.shape[0]
        out = torch.empty((num_rows, width_out), dtype=inputs.dtype, device=inputs.device)
        num_tiles = ceil_div(width_out, _BLOCK_N)
        tiles_each, splits = self._split(num_tiles, ceil_div(width_in, _BLOCK_K))
        even = width_in % _BLOCK_K == 0
        parts = splits * num_rows * width_out if splits > 1 else 0
        partial = torch.empty(parts, device=inputs.device)
        self.launch(
            _linear_kernel,
            (num_tiles, splits, 1),
            inputs,
            weight,
            bias,
            out,
            partial,
            self._arrivals,
            num_rows,
            width_in,
            width_out,
            inputs.stride(0),
            tiles_each,
            IS_SPLIT=splits > 1,
            HAS_BIAS=bias is not None,
            EVEN=even,
            BLOCK_M=max(power_of_two(num_rows), _MIN_ROWS),
            BLOCK_N=_BLOCK_N,
            BLOCK_K=_BLOCK_K,
            STAGES=_STAGES,
            num_warps=4,
        )
        return out

    def _split(self, num_tiles: int, num_steps: int) -> tuple[int, int]:
        """Return the steps of the sum each program makes, and how many programs share a tile."""
        wanted = ceil_div(self.launch.num_processors * _PROGRAMS_PER_PROCESSOR, num_tiles)
        splits = max(1, min(wanted, _MAX_SPLITS, num_steps // _MIN_TILES))
        tiles_each = ceil_div(num_steps, splits)
        return tiles_each, ceil_div(num_steps, tiles_each)


class GpuLinear(torch.nn.Module):
    """`y = x W^T + b`, by the kernel for few rows and by the vendor's library for more.

    The choice is made by the number of rows, which is fixed in a captured step. Layers of one
    device share the kernel's counters, so one stream at a time may run them. A
    `deepseek.engine.linear.FusingLinear` for the many rows of prompts.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Take `weight` (out, in), copied where its rows do not lie one after another."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._weight = weight.contiguous()
        self._bias = bias

    @property
    def _small(self) -> SmallLinear:
        """Not a field: the counters are not this layer's, nor its model's, to move or to count."""
        return _small_linear(self._weight.device)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return (..., out) for (..., in)."""
        rows = inputs.reshape(-1, self.in_features)
        if not self._small.takes(rows):
            return functional.linear(inputs, self._weight, self._bias)
        out = self._small(rows, self._weight, self._bias)
        return out.view(*inputs.shape[:-1], self.out_features)

    def add_to(self, residual: torch.Tensor, inputs: torch.Tensor) -> bool:
        if self._bias is not None or inputs.shape[0] < _MIN_ADDED_ROWS:
            return False
        residual.addmm_(inputs, self._weight.T)
        return True

    def gated_silu(self, inputs: torch.Tensor) -> torch.Tensor | None:
        launch = self._small.launch
        if self._bias is not None or not gated_linear.takes(launch, inputs, self._weight):
            return None
        return gated_linear.gated_linear(launch, inputs, self._weight)


@cache
def _small_linear(device: torch.device) -> SmallLinear:
    return SmallLinear(device)
