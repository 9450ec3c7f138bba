"""Layers of a decoder whose weights are read as INT8 or as INT4, as each row asks."""

import torch

from deepseek.core.errors import ConfigurationError
from deepseek.core.precision import Precision
from deepseek.engine.quantized_linear import BeforeRows, at_once
from deepseek.quantization.nested import PackedNested, pack

PRECISIONS = (Precision.INT8, Precision.INT4)
"""What these layers compute in, best first."""

_GROUPS = (64, 32)
"""Inputs that share a scale: the first that divides a layer's inputs."""


class NestedProjection(torch.nn.Module):
    """`y = x W^T + b` in INT8 or INT4 from one copy of the weights; a `SwitchingLinear`."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Quantise and pack `weight` (out, in); the original may be freed afterwards."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._packed = PackedNested(pack(weight, group=_group(self.in_features)), bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return (..., out) for (..., in), in INT8."""
        rows = inputs.reshape(-1, self.in_features)
        out = self.in_precision(rows, Precision.INT8)
        return out.view(*inputs.shape[:-1], self.out_features)

    def in_precision(
        self, inputs: torch.Tensor, precision: Precision | torch.Tensor
    ) -> torch.Tensor:
        """See `deepseek.engine.linear.SwitchingLinear`."""
        return self._packed.forward(inputs, precision)


def make_nested_linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    before_rows: BeforeRows = at_once,
) -> NestedProjection:
    """Return the layer of (out, in) weights in float32 or bfloat16.

    Raises `ConfigurationError` where no group of the format divides its inputs.
    """
    before_rows(weight.nbytes)
    return NestedProjection(weight, bias)


def _group(in_features: int) -> int:
    for group in _GROUPS:
        if in_features % group == 0:
            return group
    raise ConfigurationError(
        f"quantization 'nested': a layer has {in_features} inputs, which are no multiple of "
        f"{_GROUPS[-1]}; use `quantization: int8`, which takes any width",
        param="quantization",
    )
