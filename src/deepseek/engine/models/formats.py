"""Tensors stored or needed in another number format than the model's.

Hub checkpoints of DeepSeek-V3 and of Qwen3's FP8 releases hold matrices in float8 with one scale
per block of 128 x 128 elements (arXiv:2412.19437, section 3.3.2). They are multiplied out on
reading, so that everything above sees an ordinary checkpoint.
"""

from copy import copy
from typing import Any

import torch

from deepseek.core.errors import CorruptWeights, UnsupportedModel
from deepseek.engine.models.checkpoint import Checkpoint

_SCALE_SUFFIX = "_scale_inv"
"""What the hub appends to a matrix's name for the scales; despite it they multiply."""


def float32_tensor(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor that decides rather than computes, such as a gate's, in full precision."""
    return _in_float32(checkpoint).tensor(name, shape)


class BlockFp8Checkpoint(Checkpoint):
    """A checkpoint whose matrices may be float8 in scaled blocks."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Open the files; raises `UnsupportedModel` for any other kind of quantisation."""
        super().__init__(*args, **options)
        quantization: dict[str, Any] | None = self.config.quantization_config
        self._block = None if quantization is None else self._block_shape(quantization)

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """Return a tensor in the checkpoint's number format, multiplied by its scales."""
        value = super().read(name, shape)
        scales_name = name + _SCALE_SUFFIX
        if scales_name not in self.source:
            self._require_plain(name)
            return value
        if self._block is None or value.dim() != len(self._block):
            raise CorruptWeights(
                f"{self.path}: tensor {scales_name!r} scales blocks of {name!r}, "
                "config.json (quantization_config.weight_block_size) names no such blocks"
            )
        blocks = [-(-size // block) for size, block in zip(value.shape, self._block, strict=True)]
        scales = _in_float32(self).read(scales_name, tuple(blocks))
        for dim, (size, block) in enumerate(zip(value.shape, self._block, strict=True)):
            scales = scales.repeat_interleave(block, dim).narrow(dim, 0, size)
        return (value.float() * scales).to(self.dtype)

    def _block_shape(self, quantization: dict[str, Any]) -> tuple[int, int]:
        method, block = quantization.get("quant_method"), quantization.get("weight_block_size")
        if method == "fp8" and isinstance(block, list | tuple) and len(block) == 2:
            return block[0], block[1]
        raise UnsupportedModel(
            f"{self.path}: weights quantised by {method!r} (block size {block}) are not read; use "
            "the model's unquantised release, or one in fp8 with weight_block_size"
        )

    def _require_plain(self, name: str) -> None:
        if self.source.dtype(name).startswith("F8"):
            raise CorruptWeights(
                f"{self.path}: tensor {name!r} is float8, but its scales "
                f"{name + _SCALE_SUFFIX!r} are missing from the weights"
            )


def _in_float32(checkpoint: Checkpoint) -> Checkpoint:
    """Return a view of the same checkpoint whose tensors are in full precision."""
    view = copy(checkpoint)
    view.dtype = torch.float32
    return view
