"""One copy of a layer's weights that is read as INT4 or as INT8. See docs/nested-weights.md."""

from deepseek.quantization.nested.linear import NestedLinear
from deepseek.quantization.nested.packed import PackedNested
from deepseek.quantization.nested.packing import pack, pack_residual, unpack
from deepseek.quantization.nested.weights import NestedWeights

__all__ = ["NestedLinear", "NestedWeights", "PackedNested", "pack", "pack_residual", "unpack"]
