"""The memory of one model's weights, nested and in bfloat16, as the engine keeps them."""

import torch
from frame import Row, bound, fact
from serving_measures.platform import CHAT_MODEL, Run

from deepseek.engine.linear import head_factory, linear_factory
from deepseek.engine.models.base import Decoder
from deepseek.engine.models.registry import load_decoder
from deepseek.engine.ops.registry import make_ops
from deepseek.engine.weights_memory import weights_bytes
from deepseek.weights.cache import ModelCache

_MOST = 0.55
"""Part of the layers' size in bfloat16."""


def memory(run: Run) -> list[Row]:
    """Load the model both ways; embedding, norms and head are the same in both."""
    del run  # there is no shorter form
    stored, nested = _load(None), _load("nested")
    layers = _layers_bytes(nested) / _layers_bytes(stored)
    return [
        bound("bytes of the linear layers, part of bfloat16's", layers, at_most=_MOST),
        fact(
            "bytes of all weights, part of bfloat16's",
            weights_bytes(nested) / weights_bytes(stored),
        ),
        fact("MiB of all weights, nested", weights_bytes(nested) / 2**20),
    ]


def _load(quantization: str | None) -> Decoder:
    return load_decoder(
        ModelCache.default().path(CHAT_MODEL),
        dtype=torch.bfloat16,
        device="cpu",
        ops=make_ops("cpu"),
        linear_factory=linear_factory(quantization, device="cpu"),
        head_factory=head_factory(quantization, device="cpu"),
    )


def _layers_bytes(decoder: Decoder) -> int:
    return weights_bytes(*decoder.projections)
