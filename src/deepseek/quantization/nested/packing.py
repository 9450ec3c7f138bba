"""Float weights into the nested format and back.

`pack` chooses one INT8 grid whose high nibbles are the INT4 weights; `pack_residual` takes INT4
weights as they are and stores what they leave, with scales of its own.
"""

from collections.abc import Iterator

import torch

from deepseek.core.errors import ConfigurationError
from deepseek.core.precision import Precision
from deepseek.quantization.int4.base import HIGHEST, LOWEST, Int4Weights, check_weight
from deepseek.quantization.int4.rounding import quantized
from deepseek.quantization.nested import planes
from deepseek.quantization.nested.weights import TILE, NestedWeights, check_group, num_tiles

_LEAST, _MOST = 16 * LOWEST + LOWEST, 16 * HIGHEST + HIGHEST
"""What two signed nibbles hold together: -136 and 119."""
_BLOCK_NUMBERS = 2**20
"""Weights that are packed at a time, so that what comes of them in float32 stays in the cache."""


def pack(weight: torch.Tensor, *, group: int = 64) -> NestedWeights:
    """Return `weight` (out, in) on one grid of 256 steps a group, whose high nibbles are INT4.

    The grid is not symmetric: two signed nibbles reach from -136 to 119. The sign and size of a
    group's scale are chosen so that all its weights lie inside; zero stays exact.
    """
    check_weight(weight, group=group)
    check_group(group, in_features=weight.shape[1])
    high, low, scale = _empty_planes(weight.shape, group=group)
    for rows, tiles in _blocks(weight.shape):
        grouped = weight[rows].float().unflatten(1, (-1, group))
        steps_scale = _nested_scales(grouped)
        steps = grouped / (steps_scale.float()[:, :, None] / 16)
        both = steps.round_().clamp_(_LEAST, _MOST).flatten(1).to(torch.int16)
        highs = (both - LOWEST) >> 4  # to the nearest multiple of 16, so that low >= -8
        high[tiles] = planes.high_plane(highs.to(torch.int8))
        low[tiles] = planes.low_plane((both - 16 * highs).to(torch.int8))
        scale[tiles] = _scale_tiles(steps_scale)
    return NestedWeights(high=high, low=low, scale=scale, out_features=len(weight))


def pack_residual(
    weight: torch.Tensor, int4: Int4Weights, rest: Int4Weights | None = None
) -> NestedWeights:
    """Return INT4 weights as they are beside a 4-bit plane of what they leave of `weight`.

    For INT4 weights of any algorithm. Their error may be larger than half a step, hence the plane's
    own scales, a quarter of a bit a weight. `rest` is `weight - int4.dequantized()` as an algorithm
    quantised it; left out, it is rounded.
    """
    check_weight(weight, group=int4.group)
    check_group(int4.group, in_features=weight.shape[1])
    rest = _rounded_rest(weight, int4) if rest is None else rest
    for part in (int4, rest):
        _check_int4(part, weight.shape, group=int4.group)
    high, low, scale = _empty_planes(weight.shape, group=int4.group)
    low_scale = torch.empty_like(scale)
    for rows, tiles in _blocks(weight.shape):
        high[tiles] = planes.high_plane(int4.values[rows])
        low[tiles] = planes.low_plane(rest.values[rows])
        scale[tiles], low_scale[tiles] = (_scale_tiles(part.scales[rows]) for part in (int4, rest))
    return NestedWeights(
        high=high, low=low, scale=scale, low_scale=low_scale, out_features=len(weight)
    )


def unpack(weights: NestedWeights, precision: Precision) -> torch.Tensor:
    """Return the weights (out, in) float32 that products in `precision` are made of, exactly."""
    high = _dequantized(planes.high_nibbles(weights.high), weights.scale.float(), weights)
    if precision is Precision.INT4:
        return high
    if precision is Precision.FP16:
        raise ConfigurationError(
            "nested weights hold int4 and int8; fp16 weights are a layer of their own",
            param="precision",
        )
    if weights.low is None:
        raise ConfigurationError(
            "the low plane (weight_lo) is not loaded, so that int4 alone can be had",
            param="precision",
        )
    low_scale = weights.scale.float() / 16 if weights.low_scale is None else weights.low_scale
    return high + _dequantized(planes.low_nibbles(weights.low), low_scale.float(), weights)


def _dequantized(
    nibbles: torch.Tensor, scale: torch.Tensor, weights: NestedWeights
) -> torch.Tensor:
    values = planes.matrix(nibbles, out_features=weights.out_features)
    scales = scale.transpose(1, 2).flatten(0, 1)[: weights.out_features]
    return (values.unflatten(1, (-1, weights.group)) * scales[:, :, None]).flatten(1)


def _nested_scales(grouped: torch.Tensor) -> torch.Tensor:
    """Return bfloat16 scales of the high nibbles for weights (outputs, groups, group)."""
    return _extreme_scales(grouped, lowest=_LEAST / 16, highest=_MOST / 16)


def _extreme_scales(grouped: torch.Tensor, *, lowest: float, highest: float) -> torch.Tensor:
    """Return the smallest scales that bring each group within the bounds, of either sign.

    The longer side of a group goes where the grid reaches further, by the scale's sign.
    """
    least, most = grouped.amin(dim=2), grouped.amax(dim=2)
    upright = torch.maximum(least / lowest, most / highest)
    turned = torch.maximum(most / -lowest, least / -highest)
    scales = torch.where(upright <= turned, upright, -turned).bfloat16()
    return torch.where(scales == 0, torch.ones_like(scales), scales)


def _empty_planes(
    shape: torch.Size, *, group: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    out_features, in_features = shape
    tiles = num_tiles(out_features)
    high = torch.empty(tiles, in_features // 8, TILE, 4, dtype=torch.uint8)
    scale = torch.empty(tiles, in_features // group, TILE, dtype=torch.bfloat16)
    return high, torch.empty_like(high), scale


def _scale_tiles(scales: torch.Tensor) -> torch.Tensor:
    """Return (tiles, groups, 16) for (outputs, groups); one where outputs were padded."""
    padding = -len(scales) % TILE
    padded = torch.nn.functional.pad(scales, (0, 0, 0, padding), value=1.0)
    return padded.unflatten(0, (-1, TILE)).transpose(1, 2)


def _blocks(shape: torch.Size) -> Iterator[tuple[slice, slice]]:
    """Yield the outputs, whole tiles at a time, as rows and as tiles."""
    out_features, in_features = shape
    step = max(1, _BLOCK_NUMBERS // in_features // TILE)
    for tile in range(0, num_tiles(out_features), step):
        end = min(num_tiles(out_features), tile + step)
        yield slice(tile * TILE, min(out_features, end * TILE)), slice(tile, end)


def _rounded_rest(weight: torch.Tensor, int4: Int4Weights) -> Int4Weights:
    values, scales = torch.empty_like(int4.values), torch.empty_like(int4.scales)
    for rows, _ in _blocks(weight.shape):
        part = Int4Weights(values=int4.values[rows], scales=int4.scales[rows])
        grouped = (weight[rows].float() - part.dequantized()).unflatten(1, (-1, int4.group))
        scales[rows] = _extreme_scales(grouped, lowest=LOWEST - 0.49, highest=HIGHEST + 0.49)
        values[rows] = quantized(grouped, scales[rows]).values
    return Int4Weights(values=values, scales=scales)


def _check_int4(int4: Int4Weights, shape: torch.Size, *, group: int) -> None:
    if int4.values.shape != shape or int4.scales.shape != (shape[0], shape[1] // group):
        raise ConfigurationError(
            f"INT4 values are {tuple(int4.values.shape)} with scales {tuple(int4.scales.shape)}, "
            f"the weight is {tuple(shape)}",
            param="int4",
        )
    if int(int4.values.min()) < LOWEST or int(int4.values.max()) > HIGHEST:
        raise ConfigurationError("INT4 values lie outside -8 to 7", param="int4")
