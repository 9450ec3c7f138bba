"""The article's snippet, the report, and what is refused while the model stays as it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import BertForSequenceClassification, T5Config, T5ForConditionalGeneration

from deepseek import load_model
from deepseek.core.errors import ConfigurationError, InvalidQuantization, QuantizationRefused
from deepseek.core.precision import Precision
from deepseek.quantization import LayerRule, MixedPrecisionConfig, apply_quantization
from deepseek.quantization.nested import NestedLinear
from tests.tiny_models import byte_level_tokenizer

INT8 = MixedPrecisionConfig()
STRICT = MixedPrecisionConfig(attention_layers="int4", ffn_layers="int4", accuracy_threshold=1.0)


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name])
        for name in left
    )


def layer_types(model: Any) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules()}


def test_the_snippet_of_the_article_runs_as_it_stands(tiny_llama_dir: Path) -> None:
    model = load_model(tiny_llama_dir)
    scope: dict[str, Any] = {"model": model}
    snippet = """
from deepseek.quantization import MixedPrecisionConfig

config = MixedPrecisionConfig(
    attention_layers="int8", ffn_layers="fp16", dynamic_switch=True, accuracy_threshold=0.98
)
report = model.apply_quantization(config)
"""
    exec(snippet, scope)  # noqa: S102 - the article's own lines
    report = scope["report"]
    assert report.is_met
    assert report.accuracy.relative >= 0.98
    assert report.fp16_means == "bfloat16"
    assert report.dynamic_switch
    found = {layer.name: layer.precision for layer in report.layers}
    assert found["model.layers.0.mlp.up_proj"] is Precision.FP16
    assert found["model.layers.0.self_attn.q_proj"] is Precision.INT8
    assert isinstance(model.model.layers[0].self_attn.q_proj, NestedLinear)
    assert model.model.layers[0].mlp.up_proj.weight.dtype is torch.bfloat16


def test_a_report_tells_of_every_layer_and_of_the_data(
    tiny_llama_dir: Path, texts: list[str]
) -> None:
    model = load_model(tiny_llama_dir)
    float_bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    report = model.apply_quantization(
        MixedPrecisionConfig(attention_layers="int4", ffn_layers="int8"), data=texts
    )
    layers = {layer.name: layer for layer in report.layers}
    assert len(layers) == 2 * 7 + 1
    coarse, fine = layers["model.layers.0.self_attn.q_proj"], layers["model.layers.0.mlp.up_proj"]
    assert (coarse.precision, fine.precision) == (Precision.INT4, Precision.INT8)
    assert layers["lm_head"].precision is Precision.FP16
    assert layers["lm_head"].error < fine.error < 0.02 < coarse.error < 0.2
    assert coarse.num_bytes < fine.num_bytes < layers["lm_head"].num_bytes
    assert report.resident_bytes_before == float_bytes
    assert report.resident_bytes < 0.5 * float_bytes
    assert report.accuracy.data == "texts given by the caller"
    assert report.accuracy.num_texts + report.accuracy.num_search_texts == len(texts)
    assert report.accuracy.metric.startswith("likelihood")
    assert "int4" in str(report)


def test_a_report_is_json_and_a_page_that_loads_nothing(
    tiny_llama_dir: Path, texts: list[str], tmp_path: Path
) -> None:
    model = load_model(tiny_llama_dir)
    report = model.apply_quantization(INT8, data=texts, analyse=True)
    assert json.loads(report.to_json(tmp_path / "report.json"))["model"] == "LlamaForCausalLM"
    page = report.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == page
    assert page.count("<svg") == 2
    assert "model.layers.1:ffn" in page
    for reference in ("http", "<script", "<link", "@import", "url("):
        assert reference not in page
    assert len(report.sensitivities) == 4
    bits = [point.bits_per_weight for point in report.front]
    assert bits == sorted(bits)
    assert (bits[0], bits[-1]) == (8, 16)


def test_classifiers_are_judged_by_labels_where_there_are_any(
    tiny_classifier_dir: Path, texts: list[str]
) -> None:
    config = MixedPrecisionConfig(group_size=32)
    model = load_model(tiny_classifier_dir)
    report = model.apply_quantization(config, data=texts)
    assert report.accuracy.metric.startswith("top-1 agreement")
    model = load_model(tiny_classifier_dir)
    report = model.apply_quantization(config, data=[(text, n % 3) for n, text in enumerate(texts)])
    assert report.accuracy.metric == "accuracy on the labels"
    assert 0.1 < report.accuracy.before < 0.7


def test_encoders_are_judged_by_their_vectors(tiny_bert_dir: Path, texts: list[str]) -> None:
    model = load_model(tiny_bert_dir)
    config = MixedPrecisionConfig(group_size=32, accuracy_threshold=0.98)
    report = model.apply_quantization(config, data=texts)
    assert report.accuracy.metric.startswith("mean cosine")
    assert 0.98 < report.accuracy.after < 1


def test_gpt2s_transposed_layers_are_quantized_too(tiny_gpt2_dir: Path, texts: list[str]) -> None:
    model = load_model(tiny_gpt2_dir)
    report = model.apply_quantization(INT8, data=texts)
    assert isinstance(model.transformer.h[0].attn.c_attn, NestedLinear)
    assert report.accuracy.relative > 0.95


def test_int4_without_switching_keeps_no_low_plane(tiny_llama_dir: Path, texts: list[str]) -> None:
    config = {"attention_layers": "int4", "ffn_layers": "int4"}
    fixed, switchable = load_model(tiny_llama_dir), load_model(tiny_llama_dir)
    small = fixed.apply_quantization(MixedPrecisionConfig(**config), data=texts)
    large = switchable.apply_quantization(
        MixedPrecisionConfig(**config, dynamic_switch=True), data=texts
    )
    assert fixed.model.layers[0].mlp.up_proj.weight_lo is None
    assert switchable.model.layers[0].mlp.up_proj.weight_lo is not None
    assert small.resident_bytes < large.resident_bytes


def test_the_first_rule_that_matches_decides(tiny_llama_dir: Path, texts: list[str]) -> None:
    model = load_model(tiny_llama_dir)
    config = MixedPrecisionConfig(
        rules=[
            LayerRule(layers="model.layers.0.self_attn.[qk]_proj", precision="fp16"),
            LayerRule(layers="model.layers.0.*", precision="int4"),
        ]
    )
    report = model.apply_quantization(config, data=texts)
    found = {layer.name: layer.precision for layer in report.layers}
    assert found["model.layers.0.self_attn.q_proj"] is Precision.FP16
    assert found["model.layers.0.self_attn.v_proj"] is Precision.INT4
    assert found["model.layers.0.mlp.up_proj"] is Precision.INT4
    assert found["model.layers.1.mlp.up_proj"] is Precision.INT8


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"accuracy_threshold": 1.5}, "accuracy_threshold"),
        ({"accuracyThreshold": 0}, "accuracyThreshold"),
        ({"attention_layers": "int3"}, "attention_layers"),
        ({"group_size": 48}, "group_size"),
        ({"int4_algorithm": "magic"}, "int4_algorithm"),
        ({"attention": "int8"}, "attention"),
    ],
)
def test_a_config_with_a_wrong_field_names_it(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        MixedPrecisionConfig.model_validate(fields)


def test_both_spellings_are_one_config() -> None:
    camel = MixedPrecisionConfig.model_validate(
        {"attentionLayers": "int4", "dynamicSwitch": True, "groupSize": 32}
    )
    snake = MixedPrecisionConfig(attention_layers="int4", dynamic_switch=True, group_size=32)
    assert camel == snake


@pytest.mark.parametrize(
    ("config", "data", "named"),
    [
        (MixedPrecisionConfig(rules=[{"layers": "encoder.*", "precision": "int4"}]), None, "rules"),
        (MixedPrecisionConfig(group_size=128), None, "group_size.*q_proj.*32 or 64"),
        (INT8, [], "data.*no texts"),
        (INT8, ["one text only"], "data.*1 text"),
        (INT8, ["short", "shorter"], "data: too short"),
        (INT8, [("labelled", 1), ("too", 0)], "data: labels"),
        (INT8, [("labelled", 1), "not"], "label all or none"),
        (INT8, [1, 2], "item 0"),
        (INT8, Path("nowhere.txt"), "nowhere.txt"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_changes_nothing(
    tiny_llama_dir: Path, config: MixedPrecisionConfig, data: Any, named: str
) -> None:
    model = load_model(tiny_llama_dir)
    before, types = state(model), layer_types(model)
    with pytest.raises(InvalidQuantization, match=named):
        model.apply_quantization(config, data=data)
    assert same(before, state(model))
    assert types == layer_types(model)


def test_models_that_cannot_be_judged_are_refused(tiny_bert_dir: Path, texts: list[str]) -> None:
    config = MixedPrecisionConfig(group_size=32)
    regression = BertForSequenceClassification.from_pretrained(tiny_bert_dir, num_labels=1)
    with pytest.raises(InvalidQuantization, match="ranks nothing"):
        apply_quantization(regression, config, data=texts)
    both = T5ForConditionalGeneration(
        T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, vocab_size=512)
    )
    with pytest.raises(InvalidQuantization, match="encoder and a decoder"):
        apply_quantization(both, config, data=texts, tokenizer=byte_level_tokenizer())


def test_weights_that_are_no_numbers_are_refused(tiny_llama_dir: Path) -> None:
    model = load_model(tiny_llama_dir)
    model.model.layers[1].mlp.down_proj.weight.data[3, 5] = float("nan")
    with pytest.raises(InvalidQuantization, match=r"model\.layers\.1\.mlp\.down_proj"):
        model.apply_quantization(INT8)


def test_fused_experts_are_refused_by_name_unless_left_in_16_bits(
    tiny_qwen3_moe_dir: Path, texts: list[str]
) -> None:
    model = load_model(tiny_qwen3_moe_dir)
    with pytest.raises(InvalidQuantization, match=r"model\.layers\.1\.mlp\.experts.*give it fp16"):
        model.apply_quantization(INT8, data=texts)
    rule = LayerRule(layers="*.experts", precision="fp16")
    report = model.apply_quantization(MixedPrecisionConfig(rules=[rule]), data=texts)
    assert report.is_met


def test_a_head_that_shares_the_embeddings_weight_is_refused(tiny_qwen2_dir: Path) -> None:
    model = load_model(tiny_qwen2_dir)
    with pytest.raises(InvalidQuantization, match=r"lm_head.*embedding model\.embed_tokens"):
        model.apply_quantization(MixedPrecisionConfig(head_layers="int8"))


def test_a_quantized_model_is_not_quantized_again(tiny_llama_dir: Path, texts: list[str]) -> None:
    model = load_model(tiny_llama_dir)
    model.apply_quantization(INT8, data=texts)
    with pytest.raises(InvalidQuantization, match="quantized already"):
        model.apply_quantization(INT8, data=texts)


def test_a_model_without_a_directory_needs_its_tokenizer(
    tiny_llama_dir: Path, texts: list[str]
) -> None:
    model = load_model(tiny_llama_dir)
    model.config._name_or_path = ""
    with pytest.raises(InvalidQuantization, match="tokenizer"):
        apply_quantization(model, INT8, data=texts)


def test_an_accuracy_out_of_reach_is_refused_with_the_report_and_changes_nothing(
    tiny_llama_dir: Path, texts: list[str]
) -> None:
    model = load_model(tiny_llama_dir).train()
    before, types = state(model), layer_types(model)
    with pytest.raises(QuantizationRefused, match="accuracy_threshold: 1 is not met") as refusal:
        model.apply_quantization(STRICT, data=texts)
    report = refusal.value.report
    assert not report.is_met
    assert report.accuracy.relative < 1
    assert {layer.precision for layer in report.layers} == {Precision.FP16}
    assert same(before, state(model))
    assert types == layer_types(model)
    assert model.training
    assert model.config.dtype is torch.float32
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.parametrize("source", ["no-such-model", "./no/such/directory"])
def test_a_source_that_is_nowhere_is_named(source: str) -> None:
    with pytest.raises(ConfigurationError, match=source):
        load_model(source)


def test_other_int4_algorithms_choose_other_weights_and_gptq_nearer_ones(
    tiny_llama_dir: Path, texts: list[str]
) -> None:
    found = {}
    for algorithm in ("rounding", "search", "gptq"):
        config = MixedPrecisionConfig(
            attention_layers="int4", ffn_layers="int4", int4_algorithm=algorithm
        )
        report = load_model(tiny_llama_dir).apply_quantization(config, data=texts)
        found[algorithm] = report.accuracy.divergence
    assert len(set(found.values())) == 3
    assert found["gptq"] < 0.8 * found["rounding"]
    assert found["search"] < 2 * found["rounding"]  # it is for heavy tails; these have none


def test_gptq_needs_enough_text_to_learn_from(tiny_llama_dir: Path, texts: list[str]) -> None:
    model = load_model(tiny_llama_dir)
    before = state(model)
    config = MixedPrecisionConfig(int4_algorithm="gptq")
    with pytest.raises(ConfigurationError, match=r"calibration gave .* 128 inputs"):
        model.apply_quantization(config, data=[text * 3 for text in texts[:8]])
    assert same(before, state(model))
