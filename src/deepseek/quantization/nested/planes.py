"""Nibbles between matrices of small integers and the planes of the nested format."""

import torch
from torch.nn import functional

from deepseek.quantization.nested.weights import TILE, TILE_INPUTS, num_tiles

_HALF = TILE_INPUTS // 2
_BIAS = 8
"""Added to low nibbles, which are stored unsigned."""


def high_plane(values: torch.Tensor) -> torch.Tensor:
    """Return (tiles, inputs / 8, 16, 4) uint8 for nibbles (outputs, inputs) int8."""
    first, second = _halves(values)
    return (first << 4 | second & 15).view(torch.uint8)


def low_plane(values: torch.Tensor) -> torch.Tensor:
    """Return the same for the low plane, whose nibbles lie the other way round."""
    first, second = _halves(values + _BIAS)
    return (second.roll(-1, dims=3) << 4 | first).view(torch.uint8)


def high_nibbles(plane: torch.Tensor) -> torch.Tensor:
    """Return (tiles, inputs / 8, 2, 16, 4) int8, the halves of each tile's eight inputs apart."""
    signed = plane.view(torch.int8)
    return torch.stack((signed >> 4, (signed << 4) >> 4), dim=2)


def low_nibbles(plane: torch.Tensor) -> torch.Tensor:
    """Return the same for a low plane."""
    second = (plane >> 4).roll(1, dims=3)
    return torch.stack((plane & 15, second), dim=2).view(torch.int8) - _BIAS


def matrix(nibbles: torch.Tensor, *, out_features: int) -> torch.Tensor:
    """Return (outputs, inputs) for nibbles by tile, padding left out."""
    tiles, octets = nibbles.shape[:2]
    ordered = nibbles.permute(0, 3, 1, 2, 4)
    return ordered.reshape(tiles * TILE, octets * TILE_INPUTS)[:out_features]


def group_sums(nibbles: torch.Tensor, *, num_groups: int) -> torch.Tensor:
    """Return (tiles, groups, 16) int16: the sum of each output's nibbles, group by group."""
    by_octet = nibbles.sum(dim=(2, 4), dtype=torch.int16)
    return by_octet.unflatten(1, (num_groups, -1)).sum(dim=2, dtype=torch.int16)


def _halves(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tiles' first and last four inputs, each (tiles, inputs / 8, 16, 4)."""
    out_features, in_features = values.shape
    padded = functional.pad(values, (0, 0, 0, num_tiles(out_features) * TILE - out_features))
    tiles = padded.view(-1, TILE, in_features // TILE_INPUTS, 2, _HALF).permute(3, 0, 2, 1, 4)
    return tiles[0].contiguous(), tiles[1].contiguous()
