"""The products of nested weights in plain torch: what the kernel is held to, and its stand-in.

Whole-number products are exact here as there; the few operations on floats are rounded in the same
order, so that results agree to the last bit but for ties.
"""

import torch

from deepseek.quantization.nested import planes
from deepseek.quantization.nested.weights import NestedWeights


def multiply(inputs: torch.Tensor, weights: NestedWeights, *, int8: bool) -> torch.Tensor:
    """Return (rows, out) float32 for inputs (rows, in), as INT8 or as INT4."""
    steps, input_scales = quantized_inputs(inputs, group=weights.group)
    sums = torch.zeros(len(inputs), weights.out_features, dtype=torch.float64)
    parts = _parts(weights, int8=int8)
    for g in range(steps.shape[1]):
        for values, scales in parts:
            # Below 2^24, hence exact in float32.
            products = steps[:, g] @ values[:, g].T
            factors = input_scales[:, g, None] * scales[None, :, g]
            # As one fused multiply-add would round it.
            sums = (sums + products.double() * factors.double()).float().double()
    return sums.float()


def multiply_rows(
    inputs: torch.Tensor, weights: NestedWeights, int8_rows: torch.Tensor
) -> torch.Tensor:
    """Return the same where each row says for itself whether it is INT8 (bool) or INT4."""
    out = torch.empty(len(inputs), weights.out_features)
    out[int8_rows] = multiply(inputs[int8_rows], weights, int8=True)
    out[~int8_rows] = multiply(inputs[~int8_rows], weights, int8=False)
    return out


def quantized_inputs(inputs: torch.Tensor, *, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return steps from zero (rows, groups, group) and their size (rows, groups), in float32.

    A row's group spans 255 steps from its least to its most, zero among them.
    """
    grouped = inputs.float().unflatten(1, (-1, group))
    least = grouped.amin(dim=2).clamp(max=0)
    span = grouped.amax(dim=2).clamp(min=0) - least
    scales = torch.where(span > 0, span / 255, 1.0)
    inverse = 1 / scales
    zeros = torch.round(-least * inverse)[:, :, None]
    fused = (grouped.double() * inverse.double()[:, :, None] + zeros.double()).float()
    return fused.round_().clamp_(0, 255) - zeros, scales


def _parts(weights: NestedWeights, *, int8: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return whole numbers (out, groups, group) in float32 and their scales (out, groups)."""
    scale = _by_output(weights.scale, weights)
    high = _by_group(planes.high_nibbles(weights.high), weights)
    if not int8:
        return [(16 * high, scale / 16)]
    if weights.low is None:
        raise ValueError("the low plane is not loaded")
    low = _by_group(planes.low_nibbles(weights.low), weights)
    if weights.low_scale is None:
        return [(16 * high + low, scale / 16)]
    return [(16 * high, scale / 16), (low, _by_output(weights.low_scale, weights))]


def _by_group(nibbles: torch.Tensor, weights: NestedWeights) -> torch.Tensor:
    values = planes.matrix(nibbles, out_features=weights.out_features)
    return values.float().unflatten(1, (-1, weights.group))


def _by_output(scale: torch.Tensor, weights: NestedWeights) -> torch.Tensor:
    return scale.float().transpose(1, 2).flatten(0, 1)[: weights.out_features]
