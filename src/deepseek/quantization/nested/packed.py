"""Nested weights as the native kernel reads them; the engine's layers call it without a dispatcher.

The planes are used where they are: nothing is laid out anew. Without the kernel (no compiler, no
AVX2) the reference computes the same, slowly.
"""

import ctypes

import torch
from torch.nn import functional

from deepseek.core.errors import ConfigurationError, CorruptWeights
from deepseek.core.precision import Precision
from deepseek.native.library import TYPES, Kernels, NestedPlanes, load_kernels
from deepseek.quantization.nested import planes, reference
from deepseek.quantization.nested.weights import TILE, NestedWeights

_BLOCK_BYTES = 2**20


class PackedNested:
    """`y = x W^T + b`; float32 or bfloat16 in, the same out.

    What a row gets depends on that row and its precision, not on the rows it is batched with.
    """

    def __init__(self, weights: NestedWeights, bias: torch.Tensor | None = None) -> None:
        """Hold `weights` as they are; `bias` (out,) is copied."""
        self.weights = weights
        self.out_features, self.in_features = weights.out_features, weights.in_features
        self.high_sums, self.low_sums = nibble_sums(weights)
        self.bias = padded_bias(bias, out_features=self.out_features)
        self._kernels = load_kernels()
        self._view = native_planes(weights, self.high_sums, self.low_sums, self.bias)
        self._address = ctypes.addressof(self._view)

    def nbytes(self) -> int:
        """Return the bytes that are held, sums and bias included."""
        rest = (self.high_sums, self.low_sums, self.bias)
        planes_bytes = sum(self.weights.plane_bytes().values())
        return planes_bytes + sum(tensor.nbytes for tensor in rest if tensor is not None)

    def forward(self, inputs: torch.Tensor, precision: Precision | torch.Tensor) -> torch.Tensor:
        """Return (rows, out) for (rows, in) whose last dimension is contiguous.

        `precision` is INT8 or INT4 for all rows, or a bool tensor (rows,), true where INT8.
        """
        int8, int8_rows = row_choice(precision, num_rows=len(inputs))
        if self.weights.low is None and (int8 or int8_rows is not None):
            raise ConfigurationError(
                "the low plane (weight_lo) is not loaded, so that int4 alone can be had",
                param="precision",
            )
        check_inputs(inputs, in_features=self.in_features)
        if self._kernels is None:
            return reference_product(inputs, self.weights, self.bias, int8=int8, rows=int8_rows)
        return kernel_product(
            self._kernels, inputs, self._view, address=self._address, int8=int8, rows=int8_rows
        )


def kernel_product(
    kernels: Kernels,
    inputs: torch.Tensor,
    view: NestedPlanes,
    *,
    address: int,
    int8: bool,
    rows: torch.Tensor | None,
) -> torch.Tensor:
    """Return what the kernel makes of checked inputs; `address` is that of `view`."""
    out = inputs.new_empty((len(inputs), view.num_outputs))
    kernels.nested_linear(
        *(inputs.data_ptr(), inputs.stride(0), address, out.data_ptr(), len(inputs)),
        *(None if rows is None else rows.data_ptr(), int8),
        *(TYPES[inputs.dtype], torch.get_num_threads()),
    )
    return out


def row_choice(
    precision: Precision | torch.Tensor, *, num_rows: int
) -> tuple[bool, torch.Tensor | None]:
    """Return whether all rows are INT8, or else (false and) a bool for each; checks either."""
    if isinstance(precision, torch.Tensor):
        fits = precision.dtype is torch.bool and precision.shape == (num_rows,)
        if not fits or not precision.is_contiguous():
            raise ValueError(
                f"precision of rows is {tuple(precision.shape)} in {precision.dtype}, "
                f"({num_rows},) in torch.bool is wanted, true where int8"
            )
        return False, precision
    if precision is Precision.FP16:
        raise ConfigurationError(
            "nested weights hold int4 and int8; fp16 weights are a layer of their own",
            param="precision",
        )
    return precision is Precision.INT8, None


def check_inputs(inputs: torch.Tensor, *, in_features: int) -> None:
    """Refuse inputs that the kernel cannot read."""
    shape = tuple(inputs.shape)
    if len(shape) != 2 or shape[1] != in_features or inputs.stride(1) != 1:
        raise ValueError(f"inputs are {shape}, contiguous rows of {in_features} wanted")
    if inputs.dtype not in TYPES:
        raise ValueError(f"inputs are {inputs.dtype}, float32 or bfloat16 wanted")


def native_planes(
    weights: NestedWeights,
    high_sums: torch.Tensor,
    low_sums: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> NestedPlanes:
    """Return the kernel's view of the tensors, which must outlive it."""
    tensors = (
        *(weights.high, weights.low, weights.scale, weights.low_scale),
        *(high_sums, low_sums, bias),
    )
    pointers = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
    return NestedPlanes(*pointers, weights.out_features, weights.in_features, weights.group)


def nibble_sums(weights: NestedWeights) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return what a zero point of one counts for in a group, in the kernel's units.

    (tiles, groups, 16) int16: 16 times the sums of the high nibbles, for INT4 and the residual;
    the sums of the low nibbles, with those of the high plane added where INT8 is one grid.
    """
    num_groups = weights.scale.shape[1]

    def summed(plane: torch.Tensor, *, high: bool) -> torch.Tensor:
        nibbles = planes.high_nibbles if high else planes.low_nibbles
        tiles_at_once = max(1, _BLOCK_BYTES // plane[0].nbytes)
        blocks = plane.split(tiles_at_once)
        return torch.cat([planes.group_sums(nibbles(b), num_groups=num_groups) for b in blocks])

    high = 16 * summed(weights.high, high=True)
    if weights.low is None:
        return high, None
    low = summed(weights.low, high=False)
    return high, low + high if weights.low_scale is None else low


def padded_bias(bias: torch.Tensor | None, *, out_features: int) -> torch.Tensor | None:
    """Return a float32 copy that ends where the tiles end."""
    if bias is None:
        return None
    if bias.shape != (out_features,):
        raise CorruptWeights(
            f"bias is {tuple(bias.shape)}, the layer has {out_features} outputs", param="bias"
        )
    return functional.pad(bias.detach().float(), (0, -out_features % TILE))


def reference_product(
    inputs: torch.Tensor,
    weights: NestedWeights,
    bias: torch.Tensor | None,
    *,
    int8: bool,
    rows: torch.Tensor | None,
) -> torch.Tensor:
    """Return what the kernel would, by plain torch."""
    if rows is None:
        out = reference.multiply(inputs, weights, int8=int8)
    else:
        out = reference.multiply_rows(inputs, weights, rows)
    if bias is not None:
        out = out + bias[: weights.out_features]
    return out.to(inputs.dtype)
