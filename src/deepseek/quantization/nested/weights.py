"""The nested format in memory and in files: two planes of nibbles and their scales.

A weight is `high * scale` read as INT4 and `high * scale + low * low_scale` read as INT8, nibbles
from -8 to 7, scales for every `group` neighbouring inputs of an output. Where there is no plane of
low scales, `low_scale` is `scale / 16`. docs/nested-weights.md draws the layout.
"""

from dataclasses import dataclass

import torch

from deepseek.core.errors import ConfigurationError, CorruptWeights

TILE = 16
"""Outputs of a tile."""
TILE_INPUTS = 8
"""Inputs of a tile, that fills a cache line of each plane with its 128 nibbles."""
GROUPS = (32, 64, 128)
"""Group sizes of the format. 64 is the default and what accuracy and speed were measured with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NestedWeights:
    """A matrix (out_features, in_features), its outputs padded to whole tiles.

    Refuses planes that do not fit together with `CorruptWeights`, which names the plane.
    """

    high: torch.Tensor
    """(tiles, inputs / 8, 16, 4) uint8: the high nibble of a byte is for input i, the low one for
    input i + 4 of the tile's eight, as two's complement."""
    low: torch.Tensor | None
    """The same shape, or None while only INT4 is at hand. Here 8 is added to every nibble, the low
    nibble of a byte is for input i, and the high one for the input behind i + 4, in the ring of
    four that a 32-bit word holds. `16 * high + low + 8` is then a selection of bits and a turn."""
    scale: torch.Tensor
    """(tiles, groups, 16) bfloat16."""
    low_scale: torch.Tensor | None = None
    """The same, or None where it is `scale / 16`."""
    out_features: int

    def __post_init__(self) -> None:
        _check_plane("weight_hi", self.high, self.high.shape, torch.uint8)
        _check_shapes(self)
        if self.low is not None:
            _check_plane("weight_lo", self.low, self.high.shape, torch.uint8)
        _check_plane("weight_scale", self.scale, self.scale.shape, torch.bfloat16)
        if self.low_scale is not None:
            _check_plane("weight_lo_scale", self.low_scale, self.scale.shape, torch.bfloat16)

    @property
    def in_features(self) -> int:
        return self.high.shape[1] * TILE_INPUTS

    @property
    def group(self) -> int:
        return self.in_features // self.scale.shape[1]

    def plane_bytes(self) -> dict[str, int]:
        """Return the bytes of each plane by its name in files."""
        planes = {
            "weight_hi": self.high,
            "weight_lo": self.low,
            "weight_scale": self.scale,
            "weight_lo_scale": self.low_scale,
        }
        return {name: plane.nbytes for name, plane in planes.items() if plane is not None}


def num_tiles(out_features: int) -> int:
    """Return the tiles that hold so many outputs."""
    return -(-out_features // TILE)


def check_group(group: int, *, in_features: int) -> None:
    """Refuse a group size that the format does not have or that does not divide the inputs."""
    if group not in GROUPS:
        known = ", ".join(map(str, GROUPS))
        raise ConfigurationError(
            f"group size {group} is not one of the nested format's: {known}", param="group"
        )
    if in_features % group:
        raise ConfigurationError(
            f"group size {group} does not divide the {in_features} inputs; choose one that does, "
            "or leave the layer in 16 bits",
            param="group",
        )


def _check_plane(name: str, plane: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
    if plane.dtype is not dtype or plane.shape != shape or not plane.is_contiguous():
        raise CorruptWeights(
            f"{name} is {_described(plane)}; {tuple(shape)} in {dtype}, contiguous, is what fits "
            "the other planes. Quantise the model anew or fetch its files again",
            param=name,
        )


def _check_shapes(weights: NestedWeights) -> None:
    high, scale = weights.high, weights.scale
    if high.dim() != 4 or high.shape[2:] != (TILE, TILE_INPUTS // 2) or not high.numel():
        raise CorruptWeights(
            f"weight_hi is {_described(high)}; (tiles, inputs / 8, 16, 4) is wanted",
            param="weight_hi",
        )
    if high.shape[0] != num_tiles(weights.out_features):
        raise CorruptWeights(
            f"weight_hi has {high.shape[0]} tiles of 16 outputs, the layer has "
            f"{weights.out_features} outputs",
            param="weight_hi",
        )
    fits = scale.dim() == 3 and (scale.shape[0], scale.shape[2]) == (high.shape[0], TILE)
    if not fits or not any(scale.shape[1] * group == weights.in_features for group in GROUPS):
        raise CorruptWeights(
            f"weight_scale is {_described(scale)}; ({high.shape[0]}, groups, 16) is wanted for "
            f"{weights.in_features} inputs in groups of {' or '.join(map(str, GROUPS))}",
            param="weight_scale",
        )


def _described(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} in {tensor.dtype}"
