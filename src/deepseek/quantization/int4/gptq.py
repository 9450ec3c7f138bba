"""INT4 by GPTQ: every column's rounding error is made up for by the columns behind it.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(2022). What an error costs comes from inputs of the layer on calibration text (`InputMoments`).
AutoRound (arXiv:2309.05516) reaches a little more by training the roundings, at a hundred times the
time and a dependency that pins transformers; its result can be packed like any other
(`pack_residual`).
"""

from dataclasses import dataclass

import torch

from deepseek.core.errors import ConfigurationError
from deepseek.quantization.int4.base import HIGHEST, LOWEST, Int4Weights, check_weight
from deepseek.quantization.int4.rounding import extreme_scales

_SHRINKAGES = torch.linspace(1.0, 0.6, 17)
"""Scales that are tried for each group, as parts of the one that reaches its extreme."""


class InputMoments:
    """The second moments of a layer's inputs, gathered batch by batch."""

    def __init__(self, num_inputs: int) -> None:
        self._sums = torch.zeros(num_inputs, num_inputs)
        self.num_rows = 0

    def add(self, inputs: torch.Tensor) -> None:
        """Take in inputs (..., in)."""
        rows = inputs.detach().reshape(-1, len(self._sums)).float()
        self._sums.addmm_(rows.T, rows)
        self.num_rows += len(rows)

    def hessian(self) -> torch.Tensor:
        """Return the mean of x x^T (in, in); refuses fewer rows than inputs."""
        if self.num_rows < len(self._sums):
            raise ConfigurationError(
                f"calibration gave {self.num_rows} rows for a layer of {len(self._sums)} inputs; "
                "give at least as many tokens as the widest layer has inputs",
                param="calibration",
            )
        return self._sums / self.num_rows


@dataclass(slots=True)
class _Columns:
    """Weights being quantised, and the inverse Hessian's factor by which errors are handed on."""

    weight: torch.Tensor
    inverse: torch.Tensor


def gptq(
    weight: torch.Tensor, hessian: torch.Tensor, *, group: int = 64, damping: float = 0.01
) -> Int4Weights:
    """Return INT4 weights for `weight` (out, in); `hessian` (in, in) is the mean of x x^T.

    `damping` is added to the Hessian's diagonal as a part of its mean.
    """
    check_weight(weight, group=group)
    if hessian.shape != (weight.shape[1], weight.shape[1]) or not torch.isfinite(hessian).all():
        raise ConfigurationError(
            f"the Hessian is {tuple(hessian.shape)} for {weight.shape[1]} inputs, or not finite",
            param="hessian",
        )
    importance = hessian.diagonal().float().unflatten(0, (-1, group))
    columns = _Columns(weight.float().clone(), _inverse_factor(hessian.float(), damping=damping))
    values = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(len(weight), weight.shape[1] // group, dtype=torch.bfloat16)
    for g in range(scales.shape[1]):
        start = g * group
        scales[:, g] = _scales(columns.weight[:, start : start + group], importance[g])
        values[:, start : start + group] = _quantize_group(
            columns, scales[:, g].float(), start=start, end=start + group
        )
    return Int4Weights(values=values, scales=scales)


def _quantize_group(
    columns: _Columns, scales: torch.Tensor, *, start: int, end: int
) -> torch.Tensor:
    """Round the columns in turn and hand each one's error on; return (out, end - start) int8."""
    weight, inverse = columns.weight, columns.inverse
    values = torch.empty(len(weight), end - start)
    errors = torch.empty_like(values)
    for column in range(start, end):
        found = (weight[:, column] / scales).round_().clamp_(LOWEST, HIGHEST)
        error = (weight[:, column] - found * scales) / inverse[column, column]
        weight[:, column:end] -= error[:, None] * inverse[column, column:end]
        values[:, column - start], errors[:, column - start] = found, error
    weight[:, end:] -= errors @ inverse[start:end, end:]
    return values.to(torch.int8)


def _scales(weight: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
    """Return bfloat16 scales (out,) for one group: those with the least weighted rounding error."""
    widest = extreme_scales(weight[:, None])[:, 0].float()
    candidates = (_SHRINKAGES[:, None] * widest).bfloat16()
    scales = candidates.float()[:, :, None]
    errors = weight - (weight / scales).round_().clamp_(LOWEST, HIGHEST) * scales
    best = (errors.square() * importance).sum(dim=2).argmin(dim=0, keepdim=True)
    return candidates.gather(0, best)[0]


def _inverse_factor(hessian: torch.Tensor, *, damping: float) -> torch.Tensor:
    """Return the upper Cholesky factor of the damped Hessian's inverse."""
    damped = hessian.clone()
    mean = damped.diagonal().mean()
    damped.diagonal().add_(damping * mean if mean > 0 else 1.0)
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError as error:
        raise ConfigurationError(
            f"the Hessian has no inverse ({error}); use more calibration text or more damping",
            param="calibration",
        ) from error
