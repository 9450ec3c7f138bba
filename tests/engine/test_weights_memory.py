"""The memory of a model's weights, counted from what it holds."""

from pathlib import Path

import pytest
import torch

from deepseek.engine.linear import linear_factory
from deepseek.engine.models.encoder import load_encoder
from deepseek.engine.models.registry import load_decoder
from deepseek.engine.ops.registry import make_ops
from deepseek.engine.quantized_linear import FbgemmInt8Linear
from deepseek.engine.weights_memory import weights_bytes
from deepseek.weights.model_directory import open_model_directory


def test_what_is_shared_counts_once_and_padding_counts() -> None:
    weight = torch.zeros(16, 10)
    assert weights_bytes({"a": weight, "b": [weight.T, weight[:4]]}) == 16 * 10 * 4
    layer = linear_factory(None, device="cpu")(torch.zeros(32, 64), None)
    assert weights_bytes(layer) >= 32 * 64 * 4


@pytest.mark.parametrize("family", ["tiny_llama_dir", "tiny_gpt2_dir", "tiny_qwen3_moe_dir"])
def test_a_decoder_takes_what_was_read_or_its_copies_more(
    family: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(family)
    stored = open_model_directory(path).weights_bytes
    decoder = load_decoder(path, dtype=torch.float32, device="cpu", ops=make_ops("cpu"))
    # Besides: rotary tables, the copy of a tied head, padding.
    assert 0.95 * stored < weights_bytes(decoder) < 1.6 * stored
    int8 = load_decoder(
        path,
        dtype=torch.float32,
        device="cpu",
        ops=make_ops("cpu"),
        linear_factory=linear_factory("int8", device="cpu"),
    )
    assert weights_bytes(int8) < 0.8 * weights_bytes(decoder)


@pytest.mark.parametrize("family", ["tiny_bert_dir", "tiny_mpnet_dir"])
def test_an_encoder_takes_what_was_read(family: str, request: pytest.FixtureRequest) -> None:
    directory = open_model_directory(request.getfixturevalue(family))
    encoder = load_encoder(directory, dtype=torch.float32, device="cpu", ops=make_ops("cpu"))
    assert 0.9 * directory.weights_bytes < weights_bytes(encoder) < 1.3 * directory.weights_bytes


def test_what_fbgemm_has_packed_counts() -> None:
    layer = FbgemmInt8Linear(torch.ones(32, 64), None)
    assert weights_bytes(layer) == 32 * 64
