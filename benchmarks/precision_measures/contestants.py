"""Linear layers that compute with the same weights in one number format or another."""

import warnings
from collections.abc import Callable

import torch
from torch.nn import functional

from deepseek.core.precision import Precision
from deepseek.engine.linear import Bf16Linear
from deepseek.engine.quantized_linear import Int8Linear, quantize_rows
from deepseek.native.library import load_kernels
from deepseek.quantization.int4.rounding import round_to_nearest
from deepseek.quantization.nested import PackedNested, pack, pack_residual

Layer = Callable[[torch.Tensor], torch.Tensor]
GROUP = 64


def nested_int8(weight: torch.Tensor) -> Layer:
    """Ours, both planes on one grid."""
    layer = PackedNested(pack(weight))
    return lambda inputs: layer.forward(inputs, Precision.INT8)


def nested_int4(weight: torch.Tensor) -> Layer:
    """Ours, the high plane alone."""
    layer = PackedNested(pack(weight))
    return lambda inputs: layer.forward(inputs, Precision.INT4)


def residual_int8(weight: torch.Tensor) -> Layer:
    """Ours, the low plane with scales of its own."""
    layer = PackedNested(pack_residual(weight, round_to_nearest(weight)))
    return lambda inputs: layer.forward(inputs, Precision.INT8)


def plain_int8(weight: torch.Tensor) -> Layer:
    """The engine's `quantization: int8`."""
    return Int8Linear(weight, None, kernels=_kernels())


def own_bf16(weight: torch.Tensor) -> Layer:
    """The engine's layer for 16-bit weights."""
    return Bf16Linear(weight.bfloat16(), None, kernels=_kernels())


def torch_bf16(weight: torch.Tensor) -> Layer:
    """What a model computes with when nothing is done to it."""
    cast = weight.bfloat16()
    return lambda inputs: functional.linear(inputs, cast)


def torch_int4(weight: torch.Tensor) -> Layer:
    """torch's 4-bit product for CPUs: weights only, unsigned with zero points, groups of 64."""
    grouped = weight.unflatten(1, (-1, GROUP))
    least, most = grouped.amin(dim=2), grouped.amax(dim=2)
    scales = (most - least) / 15
    steps = ((grouped - least[..., None]) / scales[..., None]).round().clamp(0, 15)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(steps.flatten(1).int(), 1)
    ends = torch.stack((scales, least + 8 * scales), dim=2).transpose(0, 1).contiguous().bfloat16()
    return lambda inputs: torch.ops.aten._weight_int4pack_mm_for_cpu(inputs, packed, GROUP, ends)


def fbgemm(weight: torch.Tensor) -> Layer:
    """torch's dynamic INT8 product; activations in float32, as it takes them."""
    quantized, scales = quantize_rows(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised tensors are deprecated, the product is not
        tensor = torch._make_per_channel_quantized_tensor(
            quantized, scales.double(), torch.zeros(len(scales), dtype=torch.int64), 0
        )
        packed = torch.ops.quantized.linear_prepack(tensor, None)
    return lambda inputs: torch.ops.quantized.linear_dynamic(inputs.float(), packed)


def _kernels() -> object:
    kernels = load_kernels()
    if kernels is None or not kernels.has_int8_linear or not kernels.has_bf16_linear:
        raise RuntimeError("the kernels need AVX512-VNNI, AVX512-BF16 and a compiler")
    return kernels


CONTESTANTS: dict[str, Callable[[torch.Tensor], Layer]] = {
    "nested int8": nested_int8,
    "nested int4": nested_int4,
    "residual int8": residual_int8,
    "plain int8": plain_int8,
    "own bf16": own_bf16,
    "torch bf16": torch_bf16,
    "torch int4": torch_int4,
    "fbgemm int8": fbgemm,
}
