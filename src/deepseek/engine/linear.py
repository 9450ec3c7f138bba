"""Linear layers with weights laid out for the device before the first token."""

import ctypes
import logging
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch.nn import functional

from deepseek.core.errors import ConfigurationError
from deepseek.core.precision import Precision
from deepseek.engine.nested_linear import make_nested_linear
from deepseek.engine.quantized_linear import (
    BeforeRows,
    Int8Linear,
    at_once,
    make_int8_linear,
    require_part,
)
from deepseek.native.library import Bf16Weights, Kernels, load_kernels

logger = logging.getLogger(__name__)

_PACKING_ROWS = 16
"""Batch size the packed layout is chosen for; the layout serves every size."""

_TILE = 16
"""Outputs of a weight tile of the native kernel."""

_PACKED_BYTES = 4 << 20
"""Packed at a time, in a few milliseconds: how soon a load can be ended."""


class LinearFactory(Protocol):
    """Makes the layer that computes with a given weight; see `make_linear`."""

    def __call__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        before_rows: BeforeRows = at_once,
    ) -> torch.nn.Module:
        """Return a module that maps (..., in) to (..., out) for a weight (out, in).

        `before_rows` is called before the work on each part of the weight's rows.
        """
        ...


@runtime_checkable
class SwitchingLinear(Protocol):
    """A layer of several precisions, chosen from call to call and row by row."""

    def in_precision(
        self, inputs: torch.Tensor, precision: Precision | torch.Tensor
    ) -> torch.Tensor:
        """Return (rows, out) for (rows, in); `precision` is `RowChoices.precision`.

        What a row gets does not depend on the rows it is batched with, nor on their precision.
        """
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


@runtime_checkable
class PreparedLayer(Protocol):
    """A layer that can be taken apart and put together again, without work on its weights."""

    layout: ClassVar[str]
    """Names what `parts` are and how they lie in memory; changes when that does."""
    out_features: int
    in_features: int

    def parts(self) -> dict[str, torch.Tensor]:
        """Return what the layer computes with: its own memory."""
        ...

    @classmethod
    def from_parts(
        cls, parts: Mapping[str, torch.Tensor], *, out_features: int, in_features: int
    ) -> Self:
        """Return a layer that computes with these parts, and never writes to them.

        Raises `ValueError` where their number formats or shapes are not the layer's.
        """
        ...


class Bf16Linear(torch.nn.Module):
    """`y = x W^T + b` in bfloat16 by the native kernel.

    What a row gets does not depend on the rows it is batched with.
    """

    layout: ClassVar[str] = "bf16-tiles/1"

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        kernels: Kernels,
        before_rows: BeforeRows = at_once,
    ) -> None:
        """Pack `weight` (out, in); the original may be freed afterwards."""
        super().__init__()
        padding = -len(weight) % _TILE
        padded = None if bias is None else functional.pad(bias.float(), (0, padding))
        tiles = _pairs_in_tiles(weight, before_rows)
        self._compute_with(tiles, padded, shape=weight.shape, kernels=kernels)

    def parts(self) -> dict[str, torch.Tensor]:
        """Return the tiles, and the padded bias where there is one."""
        return {"tiles": self._tiles} | ({} if self._bias is None else {"bias": self._bias})

    @classmethod
    def from_parts(
        cls, parts: Mapping[str, torch.Tensor], *, out_features: int, in_features: int
    ) -> Self:
        """See `PreparedLayer`; to be called where the kernel runs."""
        kernels = _bf16_kernels()
        if kernels is None:
            raise ValueError("this processor does not run the bfloat16 kernel")
        num_tiles, num_pairs = -(-out_features // _TILE), -(-in_features // 2)
        tiles, bias = parts["tiles"], parts.get("bias")
        require_part(tiles, torch.bfloat16, (num_tiles, num_pairs, _TILE, 2))
        if bias is not None:
            require_part(bias, torch.float32, (num_tiles * _TILE,))
        layer = cls.__new__(cls)
        torch.nn.Module.__init__(layer)
        layer._compute_with(tiles, bias, shape=(out_features, in_features), kernels=kernels)
        return layer

    def _compute_with(
        self,
        tiles: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        shape: tuple[int, ...],
        kernels: Kernels,
    ) -> None:
        self.out_features, self.in_features = shape
        self._tiles, self._bias = tiles, bias
        self._view = Bf16Weights(
            self._tiles.data_ptr(),
            None if self._bias is None else self._bias.data_ptr(),
            *(self.out_features, self.in_features),
        )
        self._address = ctypes.addressof(self._view)
        self._kernel = kernels.bf16_linear

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return (..., out) for (..., in)."""
        if inputs.dim() != 2:
            shape = inputs.shape[:-1]
            return self.forward(inputs.reshape(-1, self.in_features)).view(*shape, -1)
        rows, width = inputs.shape
        stride, element_stride = inputs.stride()
        if width != self.in_features or element_stride != 1 or inputs.dtype is not torch.bfloat16:
            raise ValueError(
                f"inputs are {tuple(inputs.shape)} in {inputs.dtype}, rows of {self.in_features} "
                "in torch.bfloat16 wanted"
            )
        out = inputs.new_empty((rows, self.out_features))
        self._kernel(
            *(inputs.data_ptr(), stride, self._address, out.data_ptr()),
            *(rows, torch.get_num_threads()),
        )
        return out


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


def make_linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    before_rows: BeforeRows = at_once,
) -> torch.nn.Module:
    """Return the fastest linear layer for the weight's device and number format."""
    kernels = None
    if weight.device.type == "cpu" and weight.dtype is torch.bfloat16:
        kernels = _bf16_kernels()
    if kernels is not None:
        return Bf16Linear(weight, bias, kernels=kernels, before_rows=before_rows)
    before_rows(weight.nbytes)  # all at once
    if weight.device.type == "cuda":
        # Imported here: Triton does not exist on every machine.
        from deepseek.engine.ops.triton.linear import GpuLinear  # noqa: PLC0415

        return GpuLinear(weight, bias)
    packable = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
    if packable and torch.backends.mkldnn.is_available():
        return PackedLinear(weight, bias)
    return PlainLinear(weight, bias)


@cache
def _bf16_kernels() -> Kernels | None:
    """Return the kernels where ours multiply bfloat16 faster than oneDNN does, else say why not.

    On Zen 4 (docs/decisions/0004) they take 0.5-0.6 of oneDNN's time for one row, 0.65-0.75 for
    16 and 0.95 for 192. Processors with AMX are left to oneDNN, which uses it; ours do not.
    """
    kernels = load_kernels()  # warns itself where there are none
    if kernels is None:
        return None
    if not kernels.has_bf16_linear:
        logger.info("bfloat16 layers run in oneDNN: this processor has no AVX512-BF16")
        return None
    if torch.cpu._is_amx_tile_supported():
        logger.info("bfloat16 layers run in oneDNN: this processor has AMX")
        return None
    return kernels


def _pairs_in_tiles(weight: torch.Tensor, before_rows: BeforeRows) -> torch.Tensor:
    """Return (tiles, pairs of inputs, 16, 2), zeros where outputs or inputs were padded.

    A pair is moved as one word: element by element the copy would take several times as long, and
    it is most of what loading a model takes.
    """
    num_rows, num_inputs = weight.shape
    num_tiles, num_pairs = -(-num_rows // _TILE), -(-num_inputs // 2)
    tiles = weight.new_empty((num_tiles, num_pairs, _TILE, 2))
    words = tiles.view(torch.int32).squeeze(-1)
    step = max(1, _PACKED_BYTES // (_TILE * num_inputs * weight.itemsize))
    for first in range(0, num_tiles, step):
        rows = weight[first * _TILE : (first + step) * _TILE]
        before_rows(rows.nbytes)
        padding = (0, num_inputs % 2, 0, -len(rows) % _TILE)
        padded = functional.pad(rows, padding) if any(padding) else rows.contiguous()
        block = padded.view(torch.int32).unflatten(0, (-1, _TILE))
        words[first : first + step] = block.transpose(1, 2)
    return tiles


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
    """Return what makes a model's layers: as stored (None), or quantised, on CPUs.

    Raises `ConfigurationError` for another name or device.
    """
    if quantization is None:
        return make_linear
    factory = _QUANTIZED.get(quantization)
    if factory is None:
        known = ", ".join(_QUANTIZED)
        raise ConfigurationError(f"quantization {quantization!r} is unknown; known: {known}")
    if device != "cpu":
        raise ConfigurationError(
            f"quantization {quantization!r} runs on CPUs, this pool's device is {device!r}; leave "
            "it out"
        )
    return factory


def head_factory(quantization: str | None, *, device: str) -> LinearFactory:
    """Return what makes the layer of a decoder's logits; raises as `linear_factory`.

    Beside nested layers it stays as stored: coarse weights harm no other layer as much.
    """
    factory = linear_factory(quantization, device=device)
    return make_linear if quantization == "nested" else factory


def prepared_layer_class(
    quantization: str | None, *, dtype: torch.dtype, device: str
) -> type[PreparedLayer] | None:
    """Return the class of all layers that `linear_factory` makes of weights in `dtype`.

    None where they cannot be taken apart: oneDNN's and FBGEMM's layouts are opaque, and a GPU's
    layers are not laid out anew.
    """
    if device != "cpu":
        return None
    kernels = load_kernels()
    if quantization == "int8":
        return Int8Linear if kernels is not None and kernels.has_int8_linear else None
    if quantization is None and dtype is torch.bfloat16:
        return None if _bf16_kernels() is None else Bf16Linear
    return None


_QUANTIZED: dict[str, LinearFactory] = {"int8": make_int8_linear, "nested": make_nested_linear}
