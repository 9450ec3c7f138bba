"""Rounding to the nearest 4-bit weight."""

import torch

from deepseek.quantization.int4.base import HIGHEST, LOWEST, Int4Weights, check_weight


def round_to_nearest(weight: torch.Tensor, *, group: int = 64) -> Int4Weights:
    """Return signed symmetric rounding: the largest magnitude of each group lands on -8."""
    check_weight(weight, group=group)
    grouped = weight.float().unflatten(1, (-1, group))
    return quantized(grouped, extreme_scales(grouped))


def extreme_scales(grouped: torch.Tensor) -> torch.Tensor:
    """Return the bfloat16 scales (outputs, groups) that put each group's extreme on -8."""
    index = grouped.abs().argmax(dim=2, keepdim=True)
    extreme = grouped.gather(2, index).squeeze(2)
    scales = (extreme / LOWEST).bfloat16()
    return torch.where(scales == 0, torch.ones_like(scales), scales)


def quantized(grouped: torch.Tensor, scales: torch.Tensor) -> Int4Weights:
    """Round weights (outputs, groups, group) to the grid of the given scales."""
    steps = (grouped / scales.float()[:, :, None]).round_().clamp_(LOWEST, HIGHEST)
    return Int4Weights(values=steps.flatten(1).to(torch.int8), scales=scales)
