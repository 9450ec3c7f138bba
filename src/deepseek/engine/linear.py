"""Linear layers with weights laid out for the device before the first token."""

from typing import Any, Protocol, runtime_checkable

import torch
from torch.nn import functional

from deepseek.core.errors import ConfigurationError
from deepseek.engine.quantized_linear import make_int8_linear

_PACKING_ROWS = 16
"""Batch size the packed layout is chosen for; the layout serves every size."""


class LinearFactory(Protocol):
    """Makes the layer that computes with a given weight; see `make_linear`."""

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.nn.Module:
        """Return a module that maps (..., in) to (..., out) for a weight (out, in)."""
        ...


@runtime_checkable
class FusingLinear(Protocol):
    """A layer whose product can do what a decoder does next to it, where that saves time."""

    def add_to(self, residual: torch.Tensor, inputs: torch.Tensor) -> bool:
        """Add the output for (rows, in) to `residual` (rows, out) in place.

        False, and nothing is done, where adding the output afterwards is as fast.
        """
        ...

    def gated_silu(self, inputs: torch.Tensor) -> torch.Tensor | None:
        """Return silu(gate) * up of an output that holds gate, then up, for (rows, in).

        None where the activation costs as little on its own.
        """
        ...


class PackedLinear(torch.nn.Module):
    """`y = x W^T + b` with W in oneDNN's blocked layout.

    The layout saves the reordering that `torch.nn.functional.linear` does on every call: 1.4-2.2x
    for 1-16 rows in bfloat16 and float32 (SmolLM2 shapes, two cores). These are the operators that
    torch's own compiler emits when it freezes weights.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Pack `weight` (out, in); the original may be freed afterwards."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._bias = bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKING_ROWS)
        self._linear = torch.ops.mkldnn._linear_pointwise.default

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return (..., out) for (..., in)."""
        out: torch.Tensor = self._linear(inputs, self._packed, self._bias, "none", [], "")
        return out


class PlainLinear(torch.nn.Module):
    """The same, as torch does it; where oneDNN cannot pack."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._weight = weight
        self._bias = bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return (..., out) for (..., in)."""
        return functional.linear(inputs, self._weight, self._bias)


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.nn.Module:
    """Return the fastest linear layer for the weight's device and number format."""
    if weight.device.type == "cuda":
        # Imported here: Triton does not exist on every machine.
        from deepseek.engine.ops.triton.linear import GpuLinear  # noqa: PLC0415

        return GpuLinear(weight, bias)
    packable = weight.dtype in (torch.float32, torch.bfloat16)
    if weight.device.type == "cpu" and torch.backends.mkldnn.is_available() and packable:
        return PackedLinear(weight, bias)
    return PlainLinear(weight, bias)


def pack_linears(module: torch.nn.Module) -> None:
    """Replace every `torch.nn.Linear` below `module` by a packed one, in place."""
    for name, child in module.named_children():
        if type(child) is torch.nn.Linear:
            bias: Any = child.bias
            packed = make_linear(child.weight.data, None if bias is None else bias.data)
            setattr(module, name, packed)
        else:
            pack_linears(child)


def linear_factory(quantization: str | None, *, device: str) -> LinearFactory:
    """Return what makes a model's layers: as stored (None), or in INT8 (`int8`, on CPUs).

    Raises `ConfigurationError` for another name or device.
    """
    if quantization is None:
        return make_linear
    if quantization == "int8" and device != "cpu":
        raise ConfigurationError(
            f"quantization 'int8' runs on CPUs, this pool's device is {device!r}; leave it out"
        )
    if quantization == "int8":
        return make_int8_linear
    raise ConfigurationError(f"quantization {quantization!r} is unknown; known: int8")
