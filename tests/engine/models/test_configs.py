"""Configs as we read them, against transformers' own classes."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from deepseek.core.errors import ModelSourceError, UnsupportedModel
from deepseek.engine.models.configs import (
    DECODER_CONFIGS,
    ENCODER_CONFIGS,
    LlamaConfig,
    ModelConfig,
    RotaryConfig,
    read_config,
)
from deepseek.engine.models.packed_bert import MODEL_TYPES
from deepseek.engine.models.registry import ARCHITECTURES
from deepseek.weights.model_directory import DECODER_ARCHITECTURES

DECODER_TYPES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "GPT2LMHeadModel": "gpt2",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "MixtralForCausalLM": "mixtral",
    "DeepseekV2ForCausalLM": "deepseek_v2",
    "DeepseekV3ForCausalLM": "deepseek_v3",
}
IDENTITIES = {
    **{kind: [architecture] for architecture, kind in DECODER_TYPES.items()},
    **{kind: ["Model"] for kind in ENCODER_CONFIGS},
}
ONLY_OURS = {
    "moe_layer_freq": 2,
    "position_embedding_type": "relative_key",
    "quantization_config": {"quant_method": "fp8"},
    "scoring_func": "other",
    "topk_method": "other",
}
"""Keys of hub files that transformers' class has no default for, and how they may be set."""
RESOLVED = ("id2label", "rope", "sliding_window")
"""Fields whose meaning is compared instead of their value."""


def write(path: Path, model_type: str, values: dict[str, Any]) -> Path:
    identity = {"model_type": model_type, "architectures": IDENTITIES[model_type]}
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**identity, **values}))
    return path


def both(path: Path, model_type: str, values: dict[str, Any]) -> tuple[ModelConfig, Any]:
    write(path, model_type, values)
    return read_config(path), AutoConfig.from_pretrained(path)


def config_class(model_type: str) -> type[ModelConfig]:
    return DECODER_CONFIGS.get(IDENTITIES[model_type][0]) or ENCODER_CONFIGS[model_type]


def spellings(cls: type[ModelConfig], field: str) -> list[str]:
    return [field, *(key for key, target in cls.other_spellings.items() if target == field)]


def assert_same(ours: ModelConfig, theirs: Any) -> None:
    compared = 0
    for field in msgspec.structs.fields(type(ours)):
        known = [key for key in spellings(type(ours), field.name) if hasattr(theirs, key)]
        if field.name not in RESOLVED and known:
            expected = getattr(theirs, known[0])
            if field.name == "head_dim" and expected is None:
                expected = theirs.hidden_size // theirs.num_attention_heads
            assert getattr(ours, field.name) == expected, field.name
            compared += 1
    assert compared > 8
    if isinstance(ours, LlamaConfig):
        assert ours.attention_window == getattr(theirs, "sliding_window", None)
    if isinstance(ours, RotaryConfig):
        assert ours.rope.rope_theta == theirs.rope_parameters["rope_theta"]


def changed(value: Any) -> Any:
    """Return another value of the same type, one that a model could have."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return value * 3
    if isinstance(value, str):
        return "relu"
    if value is None:
        return 8
    return value * 2 if value else 3


def complete(model_type: str, *, last_spelling: bool) -> dict[str, Any]:
    """Return a config whose every key differs from its default."""
    cls = config_class(model_type)
    theirs = AutoConfig.for_model(model_type)
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(cls):
        if field.name in ONLY_OURS:
            values[field.name] = ONLY_OURS[field.name]
        elif field.name not in {"architectures", "model_type", "num_labels", *RESOLVED}:
            known = [key for key in spellings(cls, field.name) if hasattr(theirs, key)]
            key = known[-1 if last_spelling else 0] if known else field.name
            values[key] = changed(field.default)
    if issubclass(cls, RotaryConfig):
        values["rope_theta"] = 5000.0
    if "mlp_only_layers" in values:
        values["mlp_only_layers"] = [1, 2]
    if hasattr(theirs, "sliding_window"):
        values["sliding_window"] = 96
    if model_type in ENCODER_CONFIGS:
        values["id2label"] = {str(index): f"label {index}" for index in range(5)}
    return values


@pytest.fixture(params=sorted(IDENTITIES))
def model_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_family_that_is_run_has_a_config() -> None:
    assert set(DECODER_CONFIGS) == set(DECODER_ARCHITECTURES) == set(ARCHITECTURES)
    assert set(ENCODER_CONFIGS) == MODEL_TYPES
    assert set(DECODER_TYPES) == set(DECODER_CONFIGS)


@pytest.mark.parametrize("last_spelling", [False, True])
def test_a_complete_config_says_what_transformers_reads(
    model_type: str, last_spelling: bool, tmp_path: Path
) -> None:
    values = complete(model_type, last_spelling=last_spelling)
    ours, theirs = both(tmp_path, model_type, values)
    assert_same(ours, theirs)
    for field in set(ONLY_OURS) & set(values):
        assert getattr(ours, field) == ONLY_OURS[field]


@pytest.mark.timeout(60)
def test_a_key_left_out_means_what_it_means_to_transformers(
    model_type: str, tmp_path: Path
) -> None:
    values = complete(model_type, last_spelling=False)
    assert_same(*both(tmp_path, model_type, {}))
    for key in values:
        rest = {name: value for name, value in values.items() if name != key}
        assert_same(*both(tmp_path, model_type, rest))


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        *((kind, "head_dim") for kind in ("llama", "mistral", "mixtral")),
        *((kind, "num_key_value_heads") for kind in ("llama", "qwen2", "qwen3")),
        *((kind, "sliding_window") for kind in ("mistral", "qwen2", "qwen3", "mixtral")),
        *((kind, "q_lora_rank") for kind in ("deepseek_v2", "deepseek_v3")),
        ("qwen3_moe", "mlp_only_layers"),
        ("gpt2", "n_inner"),
        ("bert", "id2label"),
        ("llama", "rope_scaling"),
    ],
)
def test_null_means_what_it_means_to_transformers(kind: str, key: str, tmp_path: Path) -> None:
    assert_same(*both(tmp_path, kind, {"use_sliding_window": True, key: None}))


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
DEEPSEEK_YARN = {
    "type": "yarn",
    "factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 0.8,
    "original_max_position_embeddings": 4096,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"type": "linear", "factor": 2.5},
    "llama3": LLAMA3,
    "llama3, trained on all positions": {
        k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"
    },
    "yarn": YARN,
    "yarn, other boundaries": {**YARN, "beta_fast": 16, "beta_slow": 2.5},
    "yarn, boundaries as they fall": {**YARN, "truncate": False},
    "yarn, a factor on attention": {**YARN, "attention_factor": 1.25},
    "yarn, factor from the lengths": {**YARN, "factor": None},
    "yarn, one mscale only": {**YARN, "mscale": 0.7},
    "yarn, shrunk": {**YARN, "factor": 0.5},
    "yarn, trained on all positions": {"rope_type": "yarn", "factor": 2.0},
    "yarn of DeepSeek-V3": DEEPSEEK_YARN,
    "yarn of DeepSeek-V2": {**DEEPSEEK_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
}
ROTARY: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "mixtral": {"head_dim": 96},  # transformers' YaRN stumbles over none
    "deepseek_v2": {},
    "deepseek_v3": {},
}


def rope_forms(rope: dict[str, Any], theta: float | None) -> Iterator[dict[str, Any]]:
    """Return one rope as configs had it before transformers 5, and since."""
    top = {} if theta is None else {"rope_theta": theta}
    yield {"rope_scaling": rope, **top}
    yield {"rope_parameters": {**rope, **top}}


@pytest.mark.parametrize("kind", ROTARY)
@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("theta", [None, 500000])
def test_frequencies_are_those_of_transformers(
    name: str, kind: str, theta: float | None, tmp_path: Path
) -> None:
    for rope in rope_forms(ROPES[name], theta):
        values = {"max_position_embeddings": 16384, **ROTARY[kind], **rope}
        ours, theirs = both(tmp_path, kind, values)
        assert isinstance(ours, RotaryConfig)
        assert_same_frequencies(ours, theirs)


def assert_same_frequencies(ours: RotaryConfig, theirs: Any) -> None:
    dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    frequencies, scale = ours.rope.frequencies(dim)
    kind = theirs.rope_parameters["rope_type"]
    if kind == "default":
        theta = theirs.rope_parameters["rope_theta"]
        expected = torch.tensor([theta ** (-2 * i / dim) for i in range(dim // 2)])
        expected_scale = 1.0
    else:
        expected, expected_scale = ROPE_INIT_FUNCTIONS[kind](theirs, torch.device("cpu"))
    torch.testing.assert_close(frequencies, expected, rtol=2e-6, atol=0)
    assert math.isclose(scale, expected_scale)


def test_a_trained_length_at_the_top_level_counts(tmp_path: Path) -> None:
    values = {"rope_scaling": LLAMA3, "original_max_position_embeddings": 1024}
    ours, theirs = both(tmp_path, "llama", values)
    assert isinstance(ours, RotaryConfig)
    assert_same_frequencies(ours, theirs)
    assert ours.rope.original_max_position_embeddings == 1024  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "rope",
    [
        {"type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
        {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
    ],
)
def test_a_rope_that_no_table_holds_is_refused(rope: dict[str, Any], tmp_path: Path) -> None:
    kind = rope.get("type") or rope["rope_type"]
    with pytest.raises(UnsupportedModel, match=f"rope type '{kind}'"):
        read_config(write(tmp_path, "llama", {"rope_scaling": rope}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": "wide"}, r"Expected `int`, got `str` - at `\$\.hidden_size`"),
        ({"rope_scaling": {"type": "linear"}}, "missing required field `factor`"),
        ({"num_attention_heads": 0}, r"Expected `int` >= 1 - at `\$\.num_attention_heads`"),
        (
            {"rope_scaling": {"type": "yarn"}, "original_max_position_embeddings": "long"},
            r"at `\$\.original_max_position_embeddings`",
        ),
        ({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 0}}, ">= 1"),
        ({"rope_scaling": 3}, "rope_scaling must be an object"),
        ({"quantization_config": "fp8"}, r"at `\$\.quantization_config`"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(
    values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelSourceError, match=message) as caught:
        read_config(write(tmp_path, "llama", values))
    assert str(tmp_path / "config.json") in str(caught.value)


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(UnsupportedModel, match="model type 't5'"):
        read_config(tmp_path)
