"""INT4 by half-quadratic splitting: scales that cost the many small weights least.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023). An error of
a weight counts with the power p < 1, so that a few outliers may be wrong by much. The paper fits
zero points to fixed scales; our format has no zero points, so the same alternation fits the scales:
shrink the errors, solve for the scale. No data is needed.
"""

import torch

from deepseek.quantization.int4.base import HIGHEST, LOWEST, Int4Weights, check_weight
from deepseek.quantization.int4.rounding import extreme_scales, quantized

_POWER = 0.7
_BETA, _BETA_GROWTH = 10.0, 1.01
"""As published; the errors are in units of a group's extreme."""
_STEPS = 6
_STARTS = (1.0, 0.92, 0.84, 0.76, 0.68)
"""Parts of the scale that reaches a group's extreme; from one the alternation hardly moves."""
_BLOCK_NUMBERS = 2**20


def half_quadratic(weight: torch.Tensor, *, group: int = 64) -> Int4Weights:
    """Return INT4 weights for `weight` (out, in)."""
    check_weight(weight, group=group)
    rows_at_once = max(1, _BLOCK_NUMBERS // weight.shape[1])
    blocks = [_block(rows.float(), group=group) for rows in weight.split(rows_at_once)]
    return Int4Weights(
        values=torch.cat([block.values for block in blocks]),
        scales=torch.cat([block.scales for block in blocks]),
    )


def _block(weight: torch.Tensor, *, group: int) -> Int4Weights:
    grouped = weight.unflatten(1, (-1, group))
    extreme = grouped.abs().amax(dim=2, keepdim=True)
    unit = torch.where(extreme > 0, extreme, 1.0)
    normal = grouped / unit
    widest = extreme_scales(grouped).float()[:, :, None] / unit
    best, best_cost = widest, torch.full_like(widest, torch.inf)
    for start in _STARTS:
        found, cost = _fitted(normal, widest * start)
        better = cost < best_cost
        best, best_cost = torch.where(better, found, best), torch.where(better, cost, best_cost)
    scales = (best * unit).squeeze(2).bfloat16()
    return quantized(grouped, torch.where(scales == 0, torch.ones_like(scales), scales))


def _fitted(normal: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best scales that the alternation passes, and their costs, (out, groups, 1)."""
    best, best_cost = scales, torch.full_like(scales, torch.inf)
    beta = _BETA
    for _ in range(_STEPS):
        steps = (normal / scales).round_().clamp_(LOWEST, HIGHEST)
        error = normal - steps * scales
        cost = error.abs().pow(_POWER).sum(dim=2, keepdim=True)
        better = cost < best_cost
        best, best_cost = torch.where(better, scales, best), torch.where(better, cost, best_cost)
        squares = (steps * steps).sum(dim=2, keepdim=True)
        inliers = normal - _shrunk(error, beta=beta)
        fitted = (steps * inliers).sum(dim=2, keepdim=True) / squares
        scales = torch.where((squares > 0) & (fitted != 0), fitted, scales)
        beta *= _BETA_GROWTH
    return best, best_cost


def _shrunk(error: torch.Tensor, *, beta: float) -> torch.Tensor:
    """Return the part of each error that counts as an outlier's (the proximal step of |x|^p)."""
    size = error.abs()
    return error.sign() * (size - size.clamp(min=1e-8).pow(_POWER - 1) / beta).clamp_(min=0)
