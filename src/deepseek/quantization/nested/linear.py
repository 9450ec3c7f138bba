"""A linear layer for any torch model, with its precision switched from call to call."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch

from deepseek.core.errors import CorruptWeights
from deepseek.core.precision import Precision
from deepseek.quantization.nested.operator import nested_linear
from deepseek.quantization.nested.packed import nibble_sums, padded_bias, row_choice
from deepseek.quantization.nested.packing import pack
from deepseek.quantization.nested.weights import (
    TILE,
    TILE_INPUTS,
    NestedWeights,
    check_group,
    num_tiles,
)

_SCALES = ("weight_scale", "weight_lo_scale")
_PLANES = ("weight_hi", "weight_lo", *_SCALES)


class NestedLinear(torch.nn.Module):
    """`y = x W^T + b` in INT8 or INT4, from one copy of the weights.

    The planes are buffers: saved, loaded, copied and pickled as any module's. `precision` may be
    set at any time and costs nothing to switch.
    """

    weight_hi: torch.Tensor
    weight_lo: torch.Tensor | None
    weight_scale: torch.Tensor
    weight_lo_scale: torch.Tensor | None
    bias: torch.Tensor | None
    _high_sums: torch.Tensor
    _low_sums: torch.Tensor | None
    _padded_bias: torch.Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        group: int = 64,
        residual: bool = False,
        precision: Precision = Precision.INT8,
    ) -> None:
        """Make a layer of zeros, to be loaded; `residual`: the low plane has scales of its own.

        `from_float` and `from_weights` make one that is filled.
        """
        super().__init__()
        check_group(group, in_features=in_features)
        self.in_features, self.out_features = in_features, out_features
        self.precision = precision
        tiles = num_tiles(out_features)
        high = torch.zeros(tiles, in_features // TILE_INPUTS, TILE, 4, dtype=torch.uint8)
        scale = torch.ones(tiles, in_features // group, TILE, dtype=torch.bfloat16)
        self.register_buffer("weight_hi", high)
        self.register_buffer("weight_lo", torch.full_like(high, 0x88))  # eights are zeros there
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_lo_scale", scale.clone() if residual else None)
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)
        for name in ("_high_sums", "_low_sums"):
            self.register_buffer(
                name, torch.zeros(scale.shape, dtype=torch.int16), persistent=False
            )
        self.register_buffer("_padded_bias", None, persistent=False)
        self.refresh()

    @classmethod
    def from_float(
        cls,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        group: int = 64,
        precision: Precision = Precision.INT8,
    ) -> Self:
        """Return the layer of a weight (out, in), rounded."""
        return cls.from_weights(pack(weight, group=group), bias, precision=precision)

    @classmethod
    def from_weights(
        cls,
        weights: NestedWeights,
        bias: torch.Tensor | None = None,
        *,
        precision: Precision = Precision.INT8,
    ) -> Self:
        """Return a layer that holds `weights` as they are, not a copy."""
        with torch.device("meta"):
            layer = cls(
                weights.in_features,
                weights.out_features,
                group=weights.group,
                precision=precision,
            )
        layer.weight_hi, layer.weight_lo = weights.high, weights.low
        layer.weight_scale, layer.weight_lo_scale = weights.scale, weights.low_scale
        layer.bias = None if bias is None else bias.detach().clone()
        layer.refresh()
        return layer

    def weights(self) -> NestedWeights:
        """Return the planes, checked; raises `CorruptWeights`."""
        return NestedWeights(
            high=self.weight_hi,
            low=self.weight_lo,
            scale=self.weight_scale,
            low_scale=self.weight_lo_scale,
            out_features=self.out_features,
        )

    def refresh(self) -> None:
        """Check the planes and derive from them what is not saved.

        Call it where planes were replaced; `load_state_dict` and the constructors do.
        """
        if self.weight_hi.is_meta:
            return
        weights = self.weights()
        self._high_sums, self._low_sums = nibble_sums(weights)
        self._padded_bias = padded_bias(self.bias, out_features=self.out_features)

    def forward(
        self, inputs: torch.Tensor, precision: Precision | torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return (..., out) for (..., in) float32 or bfloat16.

        `precision`, the layer's own where it is None: INT8 or INT4 for all rows, or a bool for each
        row (...), true where INT8.
        """
        rows = inputs.reshape(-1, self.in_features)
        chosen = self.precision if precision is None else precision
        chosen = chosen.reshape(-1) if isinstance(chosen, torch.Tensor) else chosen
        int8, int8_rows = row_choice(chosen, num_rows=rows.shape[0])
        out = nested_linear(
            *(rows, self.weight_hi, self.weight_lo, self.weight_scale, self.weight_lo_scale),
            *(self._high_sums, self._low_sums, self._padded_bias),
            *(self.out_features, int8, int8_rows),
        )
        return out.view(*inputs.shape[:-1], self.out_features)

    def _apply(
        self, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> Self:
        # `model.float()` and the like are for what a model computes with: scales stay as they are,
        # disguised as whole numbers meanwhile.
        for name in _SCALES:
            scale = getattr(self, name)
            setattr(self, name, None if scale is None else scale.view(torch.int16))
        try:
            super()._apply(function, recurse)
        finally:
            for name in _SCALES:
                scale = getattr(self, name)
                setattr(self, name, None if scale is None else scale.view(torch.bfloat16))
        if not self.weight_hi.is_meta:
            self._padded_bias = padded_bias(self.bias, out_features=self.out_features)
        return self

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, precision={self.precision}"
        )

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any
    ) -> None:
        # torch would cast a plane of another type to ours, and its numbers would be nonsense.
        for name in _PLANES:
            plane, own = state_dict.get(prefix + name), getattr(self, name)
            if plane is not None and own is not None and plane.dtype is not own.dtype:
                raise CorruptWeights(
                    f"{prefix}{name} is {plane.dtype}, {own.dtype} is wanted; quantise the model "
                    "anew or fetch its files again",
                    param=prefix + name,
                )
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self.refresh()
