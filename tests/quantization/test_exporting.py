"""What is exported, read back by stock transformers with compressed-tensors."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from deepseek import load_model
from deepseek.core.errors import InvalidQuantization
from deepseek.quantization import MixedPrecisionConfig, export
from deepseek.quantization.nested import NestedLinear, unpack

pytest.importorskip("compressed_tensors", reason="exports need the extra `export`")

from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig

FFN_ONLY = {"attention_layers": "fp16", "ffn_layers": "int8"}
IDS = torch.tensor([[5, 9, 77, 130, 8, 201, 40]])


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def with_dense_weights(model: Any) -> Any:
    """Put plain layers of the same weights in the place of nested ones.

    Nested layers round their inputs as well, which readers of the exported format do not.
    """
    nested = {n: m for n, m in model.named_modules() if isinstance(m, NestedLinear)}
    for name, layer in nested.items():
        dense = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        dense.weight.data = unpack(layer.weights(), layer.precision).to(model.dtype)
        if layer.bias is not None:
            dense.bias.data = layer.bias.clone()
        model.set_submodule(name, dense)
    return model


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.filterwarnings("ignore")  # of a library that is not ours
def test_stock_transformers_reads_int4_layers_bit_for_bit(
    tiny_llama_dir: Path, texts: list[str], tmp_path: Path, group_size: int
) -> None:
    model = load_model(tiny_llama_dir)
    config = MixedPrecisionConfig.model_validate(
        {**FFN_ONLY, "ffn_layers": "int4", "group_size": group_size, "dynamic_switch": True}
    )
    model.apply_quantization(config, data=texts)
    own = logits(model)
    export(model, tmp_path)
    assert torch.equal(logits(model), own), "the model itself is as it was"
    other = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(other), logits(with_dense_weights(model)))


@pytest.mark.filterwarnings("ignore")
def test_stock_transformers_reads_int8_layers_bit_for_bit(
    tiny_llama_dir: Path, texts: list[str], tmp_path: Path
) -> None:
    model = load_model(tiny_llama_dir)
    model.apply_quantization(MixedPrecisionConfig.model_validate(FFN_ONLY), data=texts)
    export(model, tmp_path)
    # It cannot keep packed zero points in memory (vllm-project/llm-compressor#1618).
    options = CompressedTensorsConfig(dequantize=True)
    other = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=options)
    assert torch.equal(logits(other), logits(with_dense_weights(model)))


def test_every_layer_of_a_mixed_export_unpacks_to_its_own_weights(
    tiny_llama_dir: Path, texts: list[str], tmp_path: Path
) -> None:
    model = load_model(tiny_llama_dir)
    mixed = MixedPrecisionConfig(ffn_layers="int4", head_layers="int8")
    model.apply_quantization(mixed, data=texts)
    export(model, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    described = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(described)
    nested = {n: m for n, m in model.named_modules() if isinstance(m, NestedLinear)}
    for name, layer in nested.items():
        (scheme,) = (
            group
            for group in config.config_groups.values()
            if any(re.match(target.removeprefix("re:"), name) for target in group.targets)
        )
        prefix = f"{name}."
        tensors = {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}
        found = PackedQuantizationCompressor.decompress(tensors, scheme)["weight"]
        assert torch.equal(found, unpack(layer.weights(), layer.precision).bfloat16())
    assert len(nested) == 15


@pytest.mark.filterwarnings("ignore")
def test_biases_are_exported(tiny_qwen2_dir: Path, texts: list[str], tmp_path: Path) -> None:
    model = load_model(tiny_qwen2_dir)
    model.apply_quantization(
        MixedPrecisionConfig(attention_layers="int4", ffn_layers="int4"), data=texts
    )
    export(model, tmp_path)
    other = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(other), logits(with_dense_weights(model)))


def test_what_the_format_cannot_hold_is_refused_by_name(
    tiny_gpt2_dir: Path, tiny_llama_dir: Path, texts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InvalidQuantization, match="no quantized layer"):
        export(load_model(tiny_llama_dir), tmp_path)
    model = load_model(tiny_gpt2_dir)
    model.apply_quantization(MixedPrecisionConfig(), data=texts)
    with pytest.raises(InvalidQuantization, match=r"transformer\.h\.0\.attn\.c_attn.*Conv1D"):
        export(model, tmp_path)
