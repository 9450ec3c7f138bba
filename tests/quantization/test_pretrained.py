"""Quantized models through transformers' own doors: generate, copy, pickle, save, load."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from deepseek import load_model
from deepseek.core.errors import CorruptWeights, InvalidQuantization
from deepseek.core.precision import Precision
from deepseek.quantization import MixedPrecisionConfig, set_precision
from deepseek.weights.child_process import environment_of_own_modules

MIXED = MixedPrecisionConfig(attention_layers="int8", ffn_layers="int4", dynamic_switch=True)
IDS = torch.tensor([[5, 9, 77, 130, 8, 201, 40]])


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


@pytest.fixture
def quantized(tiny_llama_dir: Path, texts: list[str]) -> Any:
    model = load_model(tiny_llama_dir)
    model.apply_quantization(MIXED, data=texts)
    return model


def test_a_quantized_model_generates(quantized: Any) -> None:
    answer = quantized.generate(IDS, max_new_tokens=5, do_sample=False)
    assert answer.shape == (1, IDS.shape[1] + 5)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])  # noqa: S301
def test_a_copy_answers_alike_and_is_a_model_of_the_same_kind(quantized: Any, again: Any) -> None:
    other = again(quantized)
    assert type(other) is type(quantized)
    assert type(other).__name__ == "LlamaForCausalLM"
    assert torch.equal(logits(other), logits(quantized))
    set_precision(other, "int4")
    assert not torch.equal(logits(other), logits(quantized))


def test_a_float_model_of_our_loader_can_be_copied_and_pickled(tiny_llama_dir: Path) -> None:
    model = load_model(tiny_llama_dir)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        assert callable(other.apply_quantization)
        assert torch.equal(logits(other), logits(model))


def test_a_saved_model_is_loaded_with_the_same_logits_bit_for_bit(
    quantized: Any, tmp_path: Path
) -> None:
    quantized.save_pretrained(tmp_path)
    other = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(other), logits(quantized))
    set_precision(other, "int4")
    set_precision(quantized, "int4")
    assert torch.equal(logits(other), logits(quantized))
    set_precision(other, None)
    other.save_pretrained(tmp_path / "again")
    third = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    set_precision(quantized, None)
    assert torch.equal(logits(third), logits(quantized))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_new_process_loads_it_after_importing_our_package_alone(
    quantized: Any, tmp_path: Path
) -> None:
    quantized.save_pretrained(tmp_path)
    probe = f"""
import deepseek.quantization, sys
assert "transformers" not in sys.modules and "torch" not in sys.modules
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})
with torch.inference_mode():
    print(model(torch.tensor({IDS.tolist()})).logits.double().sum().item())
"""
    done = subprocess.run(
        [sys.executable, "-c", probe],
        env={**environment_of_own_modules(), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) == logits(quantized).double().sum().item()


def test_biases_and_transposed_layers_are_saved_and_loaded(
    tiny_gpt2_dir: Path, texts: list[str], tmp_path: Path
) -> None:
    model = load_model(tiny_gpt2_dir)
    model.apply_quantization(MIXED, data=texts)
    model.save_pretrained(tmp_path)
    other = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(other), logits(model))


def test_classifiers_are_saved_and_loaded_without_low_planes(
    tiny_classifier_dir: Path, texts: list[str], tmp_path: Path
) -> None:
    model = load_model(tiny_classifier_dir)
    model.apply_quantization(
        MixedPrecisionConfig(attention_layers="int4", group_size=32), data=texts
    )
    model.save_pretrained(tmp_path)
    other = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert other.bert.encoder.layer[0].attention.self.query.weight_lo is None
    assert torch.equal(logits(other), logits(model))


def test_our_loader_loads_it_too(quantized: Any, tiny_llama_dir: Path, tmp_path: Path) -> None:
    quantized.save_pretrained(tmp_path)
    for file in tiny_llama_dir.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    other = load_model(tmp_path)
    assert torch.equal(logits(other), logits(quantized))
    with pytest.raises(InvalidQuantization, match="quantized already"):
        other.apply_quantization(MIXED)


def test_a_config_that_names_a_layer_which_is_not_there_is_refused(
    quantized: Any, tmp_path: Path
) -> None:
    layers = quantized.config.quantization_config.layers
    layers["model.layers.9.mlp.up_proj"] = layers["model.layers.0.mlp.up_proj"]
    quantized.save_pretrained(tmp_path)
    with pytest.raises(CorruptWeights, match=r"model\.layers\.9\.mlp\.up_proj"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_precision_can_be_lowered_and_given_back(quantized: Any) -> None:
    own = logits(quantized)
    quantized.set_precision(Precision.INT4)
    assert quantized.model.layers[0].self_attn.q_proj.precision is Precision.INT4
    assert not torch.equal(logits(quantized), own)
    quantized.set_precision(Precision.INT8)
    assert quantized.model.layers[0].self_attn.q_proj.precision is Precision.INT8
    assert quantized.model.layers[0].mlp.up_proj.precision is Precision.INT4
    quantized.set_precision(None)
    assert torch.equal(logits(quantized), own)


def test_a_model_that_may_not_switch_does_not(tiny_llama_dir: Path, texts: list[str]) -> None:
    model = load_model(tiny_llama_dir)
    model.apply_quantization(MixedPrecisionConfig(), data=texts)
    with pytest.raises(InvalidQuantization, match="dynamic_switch"):
        model.set_precision("int4")
    with pytest.raises(InvalidQuantization, match="int3"):
        model.set_precision("int3")


def test_the_floor_of_the_policy_bounds_how_low_it_goes(
    tiny_llama_dir: Path, texts: list[str]
) -> None:
    model = load_model(tiny_llama_dir)
    config = MixedPrecisionConfig.model_validate({"dynamicSwitch": {"floor": "int8"}})
    model.apply_quantization(config, data=texts)
    with pytest.raises(InvalidQuantization, match="floor"):
        model.set_precision("int4")


def test_damaged_planes_are_named(quantized: Any, tmp_path: Path) -> None:
    quantized.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight_hi"
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises((CorruptWeights, RuntimeError), match=r"up_proj\.weight_hi|size"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
