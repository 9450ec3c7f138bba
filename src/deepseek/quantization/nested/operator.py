"""`torch.ops.deepseek.nested_linear`: the product as an operator that torch.compile can trace."""

import ctypes

import torch

from deepseek.native.library import load_kernels
from deepseek.quantization.nested.packed import (
    check_inputs,
    kernel_product,
    native_planes,
    reference_product,
)
from deepseek.quantization.nested.weights import NestedWeights


@torch.library.custom_op("deepseek::nested_linear", mutates_args=())
def nested_linear(
    inputs: torch.Tensor,
    weight_hi: torch.Tensor,
    weight_lo: torch.Tensor | None,
    weight_scale: torch.Tensor,
    weight_lo_scale: torch.Tensor | None,
    high_sums: torch.Tensor,
    low_sums: torch.Tensor | None,
    bias: torch.Tensor | None,
    out_features: int,
    int8: bool,
    int8_rows: torch.Tensor | None,
) -> torch.Tensor:
    """Return (rows, out) for inputs (rows, in).

    `bias` is padded to whole tiles; `int8` is for all rows where `int8_rows` (rows,) is None.
    """
    weights = NestedWeights(
        high=weight_hi,
        low=weight_lo,
        scale=weight_scale,
        low_scale=weight_lo_scale,
        out_features=out_features,
    )
    inputs = inputs.contiguous() if inputs.stride(-1) != 1 else inputs
    check_inputs(inputs, in_features=weights.in_features)
    kernels = load_kernels()
    if kernels is None:
        return reference_product(inputs, weights, bias, int8=int8, rows=int8_rows)
    view = native_planes(weights, high_sums, low_sums, bias)
    address = ctypes.addressof(view)
    return kernel_product(kernels, inputs, view, address=address, int8=int8, rows=int8_rows)


@nested_linear.register_fake
def _(
    inputs: torch.Tensor,
    weight_hi: torch.Tensor,
    weight_lo: torch.Tensor | None,
    weight_scale: torch.Tensor,
    weight_lo_scale: torch.Tensor | None,
    high_sums: torch.Tensor,
    low_sums: torch.Tensor | None,
    bias: torch.Tensor | None,
    out_features: int,
    int8: bool,
    int8_rows: torch.Tensor | None,
) -> torch.Tensor:
    return inputs.new_empty((inputs.shape[0], out_features))
