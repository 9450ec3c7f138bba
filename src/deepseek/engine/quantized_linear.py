"""INT8 linear layers for CPUs: weights per output channel, activations quantised as they come.

On AVX512-VNNI our own kernel runs; elsewhere torch's FBGEMM, slower. In both, what a row gets does
not depend on the rows it is batched with.
"""

import ctypes
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

import torch
from torch.nn import functional

from deepseek.native.library import TYPES, Int8Weights, Kernels, load_kernels

_TILE = 16
"""Outputs of a weight tile of the kernel."""

GROUP = 64
"""Neighbouring inputs of a row that the kernel quantises by one scale and zero point."""


_BLOCK_NUMBERS = 2**18
"""Weights that are quantised at a time. In float32 they and what comes of them stay in the cache;
a whole matrix at a time is bound by the pages that the system has to find for it."""


BeforeRows = Callable[[int], None]
"""Told how many bytes of a weight are worked on next; may wait, and ends the work by raising."""


def at_once(num_bytes: int) -> None:
    """Let the work go on."""


def quantize_rows(
    weight: torch.Tensor, before_rows: BeforeRows = at_once
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return INT8 (out, in) and float32 scales (out,): symmetric, one scale per output channel."""
    quantized = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(len(weight))
    for rows in _row_blocks(weight):
        before_rows(weight[rows].nbytes)
        block = weight[rows].float()
        largest = block.abs().amax(dim=1) / 127
        scales[rows] = torch.where(largest > 0, largest, 1.0)
        quantized[rows] = (block / scales[rows, None]).round_()
    return quantized, scales


def make_int8_linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    before_rows: BeforeRows = at_once,
) -> "Int8Linear | FbgemmInt8Linear":
    """Return the fastest INT8 layer of this CPU for (out, in) weights in float32 or bfloat16."""
    kernels = load_kernels()
    if kernels is not None and kernels.has_int8_linear:
        return Int8Linear(weight, bias, kernels=kernels, before_rows=before_rows)
    return FbgemmInt8Linear(weight, bias, before_rows=before_rows)


class Int8Linear(torch.nn.Module):
    """`y = x W^T + b` by the native kernel; float32 or bfloat16 in, the same out."""

    layout: ClassVar[str] = "int8-tiles/1"

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        kernels: Kernels,
        before_rows: BeforeRows = at_once,
    ) -> None:
        """Quantise and pack `weight` (out, in); the original may be freed afterwards."""
        super().__init__()
        quantized, scales = quantize_rows(weight, before_rows)
        padding = -len(weight) % _TILE
        parts = {
            "tiles": _pack(quantized),
            "scales": functional.pad(scales, (0, padding)),
            "sums": _group_sums(quantized, before_rows),
        }
        if bias is not None:
            parts["bias"] = functional.pad(bias.float(), (0, padding))
        self._compute_with(parts, shape=weight.shape, kernels=kernels)

    def parts(self) -> dict[str, torch.Tensor]:
        """Return tiles, scales and sums, and the padded bias where there is one."""
        parts = {"tiles": self._tiles, "scales": self._scales, "sums": self._sums}
        return parts | ({} if self._bias is None else {"bias": self._bias})

    @classmethod
    def from_parts(
        cls, parts: Mapping[str, torch.Tensor], *, out_features: int, in_features: int
    ) -> Self:
        """See `deepseek.engine.linear.PreparedLayer`; to be called where the kernel runs."""
        kernels = load_kernels()
        if kernels is None or not kernels.has_int8_linear:
            raise ValueError("this processor does not run the INT8 kernel")
        num_tiles, num_groups = -(-out_features // _TILE), -(-in_features // GROUP)
        num_quads = -(-in_features // 4)
        require_part(parts["tiles"], torch.int8, (num_tiles, num_quads, _TILE, 4))
        require_part(parts["scales"], torch.float32, (num_tiles * _TILE,))
        require_part(parts["sums"], torch.int16, (num_tiles, num_groups, _TILE))
        if "bias" in parts:
            require_part(parts["bias"], torch.float32, (num_tiles * _TILE,))
        layer = cls.__new__(cls)
        torch.nn.Module.__init__(layer)
        layer._compute_with(parts, shape=(out_features, in_features), kernels=kernels)
        return layer

    def _compute_with(
        self, parts: Mapping[str, torch.Tensor], *, shape: tuple[int, ...], kernels: Kernels
    ) -> None:
        self.out_features, self.in_features = shape
        self._tiles, self._scales, self._sums = parts["tiles"], parts["scales"], parts["sums"]
        self._bias = parts.get("bias")
        self._view = Int8Weights(
            *(self._tiles.data_ptr(), self._scales.data_ptr(), self._sums.data_ptr()),
            *(None if self._bias is None else self._bias.data_ptr(),),
            *(self.out_features, self.in_features),
        )
        self._address = ctypes.addressof(self._view)
        self._kernel = kernels.int8_linear

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return (..., out) for (..., in)."""
        if inputs.dim() != 2:
            shape = inputs.shape[:-1]
            return self.forward(inputs.reshape(-1, self.in_features)).view(*shape, -1)
        rows, width = inputs.shape
        stride, element_stride = inputs.stride()
        if width != self.in_features or element_stride != 1:
            raise ValueError(f"inputs are {tuple(inputs.shape)}, rows of {self.in_features} wanted")
        out = inputs.new_empty((rows, self.out_features))
        self._kernel(
            *(inputs.data_ptr(), stride, self._address, out.data_ptr()),
            *(rows, TYPES[inputs.dtype], torch.get_num_threads()),
        )
        return out


def require_part(part: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` where a kernel would read something else than a layer's part."""
    if part.dtype is not dtype or tuple(part.shape) != shape or not part.is_contiguous():
        raise ValueError(f"{tuple(part.shape)} in {part.dtype} instead of {shape} in {dtype}")


class FbgemmInt8Linear(torch.nn.Module):
    """The same through torch's FBGEMM, for machines that our kernel does not serve.

    FBGEMM quantises all rows by one range. Here every row is scaled to the range -1 to 1 first, and
    a row that spans it exactly is added, so that the range is the same whatever the batch.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        before_rows: BeforeRows = at_once,
    ) -> None:
        """Quantise and pack `weight` (out, in); the original may be freed afterwards."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._packed = _fbgemm_packed(*quantize_rows(weight, before_rows))
        self.packed_bytes = weight.numel()
        """What FBGEMM's own object holds, which does not say so."""
        self._bias = None if bias is None else bias.float()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return (..., out) for (..., in)."""
        rows = inputs.reshape(-1, self.in_features).float()
        largest = rows.abs().amax(dim=1, keepdim=True)
        largest = torch.where(largest > 0, largest, 1.0)
        spanning = torch.zeros(2, self.in_features)
        spanning[0, 0], spanning[1, 0] = -1.0, 1.0
        scaled = torch.cat((rows / largest, spanning))
        out = torch.ops.quantized.linear_dynamic(scaled, self._packed)[:-2] * largest
        out = out if self._bias is None else out + self._bias
        return out.to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)


def _pack(quantized: torch.Tensor) -> torch.Tensor:
    """Return (tiles, inputs / 4, 16, 4), zeros where outputs or inputs were padded."""
    out_features, in_features = quantized.shape
    padding = (0, -in_features % 4, 0, -out_features % _TILE)
    padded = functional.pad(quantized, padding) if any(padding) else quantized
    words = padded.view(torch.int32).unflatten(0, (-1, _TILE))  # four inputs are moved as one word
    return words.transpose(1, 2).contiguous().view(torch.int8).unflatten(2, (_TILE, 4))


def _group_sums(quantized: torch.Tensor, before_rows: BeforeRows) -> torch.Tensor:
    """Return (tiles, groups, 16) int16: what a zero point of one counts for, group by group."""
    num_rows, num_inputs = quantized.shape
    padding = -num_inputs % GROUP
    sums = torch.zeros(num_rows + -num_rows % _TILE, (num_inputs + padding) // GROUP).short()
    for rows in _row_blocks(quantized):
        before_rows(0)  # has been told of these rows
        block = quantized[rows].float()  # sums of 64 are exact, and faster than those of integers
        padded = functional.pad(block, (0, padding)) if padding else block
        sums[rows] = padded.unflatten(1, (-1, GROUP)).sum(dim=2).short()
    return sums.unflatten(0, (-1, _TILE)).transpose(1, 2).contiguous()


def _row_blocks(matrix: torch.Tensor) -> Iterator[slice]:
    """Yield the rows, as many at a time as are `_BLOCK_NUMBERS`."""
    num_rows, num_inputs = matrix.shape
    step = max(1, _BLOCK_NUMBERS // num_inputs)
    for start in range(0, num_rows, step):
        yield slice(start, min(num_rows, start + step))


def _fbgemm_packed(quantized: torch.Tensor, scales: torch.Tensor) -> Any:
    """Pack for `quantized.linear_dynamic`, the one use of torch's deprecated quantised tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch._make_per_channel_quantized_tensor(
            quantized, scales.double(), torch.zeros(len(scales), dtype=torch.int64), 0
        )
        return torch.ops.quantized.linear_prepack(tensor, None)
