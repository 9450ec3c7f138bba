"""What every algorithm that chooses 4-bit weights returns, and what it refuses."""

from dataclasses import dataclass

import torch

from deepseek.core.errors import ConfigurationError

LOWEST, HIGHEST = -8, 7
"""What a signed nibble holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Int4Weights:
    """`values * scales`, a scale for every `group` neighbouring inputs of an output."""

    values: torch.Tensor
    """(outputs, inputs) int8, from -8 to 7."""
    scales: torch.Tensor
    """(outputs, groups) bfloat16; negative where the largest magnitude is positive, since -8
    reaches further than 7."""

    @property
    def group(self) -> int:
        return self.values.shape[1] // self.scales.shape[1]

    def dequantized(self) -> torch.Tensor:
        """Return the weights that are computed with, (outputs, inputs) float32."""
        grouped = self.values.float().unflatten(1, (-1, self.group))
        return (grouped * self.scales.float()[:, :, None]).flatten(1)


def check_weight(weight: torch.Tensor, *, group: int) -> None:
    """Refuse what cannot be quantised, by name: shape, a group that does not divide, NaN."""
    if weight.dim() != 2 or not weight.numel():
        raise ConfigurationError(
            f"weight has shape {tuple(weight.shape)}; a matrix (outputs, inputs) that is not empty "
            "can be quantised",
            param="weight",
        )
    if not weight.dtype.is_floating_point:
        raise ConfigurationError(
            f"weight is {weight.dtype}; floating-point weights can be quantised", param="weight"
        )
    if group < 1 or weight.shape[1] % group:
        raise ConfigurationError(
            f"group size {group} does not divide the {weight.shape[1]} inputs; choose one that "
            "does, or leave the layer in 16 bits",
            param="group",
        )
    num_bad = int(weight.numel() - torch.isfinite(weight).sum())
    if num_bad:
        raise ConfigurationError(
            f"weight holds {num_bad} numbers that are NaN or infinite; the checkpoint is damaged",
            param="weight",
        )
