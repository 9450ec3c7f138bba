"""Settings of quantisation and precision that make no sense together."""

from pathlib import Path
from typing import Any

import pytest

from deepseek.core.errors import ConfigurationError, DeploymentFileError
from deepseek.core.precision import Precision
from deepseek.deployment_file import DeploymentFile, load_deployment_file, parse_deployment
from deepseek.serving.precision_faults import check_engine_switches
from deepseek.serving.settings import ModelSettings
from deepseek.weights.model_directory import open_model_directory
from tests.tiny_models import said_to_be_gpt_neox

NESTED = {"quantization": "nested"}


def parse(model: dict[str, Any], pool: dict[str, Any] | None = None) -> DeploymentFile:
    return parse_deployment(
        {"models": {"m": {"source": "s", **model}}, "pools": {"default": pool or {}}}
    )


def policy(**precision: Any) -> dict[str, Any]:
    return {**NESTED, "precision": precision}


def test_both_spellings_and_units_are_read() -> None:
    file = parse(
        policy(
            default="int4",
            rules=[
                {"use": "int8", "serviceTiers": ["priority"], "keep": True},
                {"use": "int8", "max_prompt_tokens": 100, "maxAnswerTokens": 32},
            ],
            shedding={"wait": "500ms", "calm": 30},
        )
    )
    settings = file.models["m"].precision
    assert settings is not None
    read = settings.to_policy()
    assert read.default is Precision.INT4
    assert [rule.is_kept for rule in read.rules] == [True, False]
    assert read.rules[0].service_tiers == ("priority",)
    assert (read.rules[1].max_prompt_tokens, read.rules[1].max_answer_tokens) == (100, 32)
    assert settings.shedding is not None
    limits = settings.shedding.to_limits()
    assert (limits.wait_s, limits.calm_s) == (0.5, 30.0)
    assert parse(NESTED).models["m"].precision is None


@pytest.mark.parametrize(
    ("model", "pool", "told"),
    [
        ({"precision": {}}, {}, "models.m.precision: there is no choice of it"),
        ({"quantization": "int8", "precision": {}}, {}, "write `quantization: nested`"),
        ({"quantization": "int4"}, {}, "models.m.quantization: must be one of int8, nested"),
        (NESTED, {"device": "cuda:1"}, "pool 'default' has device 'cuda:1'; use another pool"),
        ({**NESTED, "engine": "vllm"}, {}, "models.m.quantization: vLLM does not compute"),
        ({**NESTED, "task": "embed"}, {}, "models.m.quantization: `nested` is for language models"),
        (policy(default="int4", minimum="int8"), {}, "precision.default: int4 is less than"),
        (policy(default="fp16"), {}, "precision.default: must be one of int8, int4"),
        (policy(minimum="int8", shedding={}), {}, "precision.shedding: has no effect while"),
        (
            policy(minimum="int8", rules=[{"use": "int4", "min_prompt_tokens": 5}]),
            {},
            "precision.rules.0.use: int4 is less than minimum (int8)",
        ),
        (
            policy(rules=[{"use": "int4"}, {"use": "int8", "service_tiers": ["flex"]}]),
            {},
            "precision.rules.1: is never looked at: rule 0 fits every request",
        ),
        (
            policy(rules=[{"use": "int4", "minAnswerTokens": 9, "max_answer_tokens": 8}]),
            {},
            "precision.rules.0.minAnswerTokens: 9 is more than max_answer_tokens (8)",
        ),
        (policy(rules=[{"max_answer_tokens": 8}]), {}, "precision.rules.0.use: is missing"),
        (policy(shedding={"wait": 0}), {}, "precision.shedding.wait: must be a duration"),
        (policy(shedding={"wiat": 1}), {}, "shedding.wiat: unknown key; did you mean 'wait'?"),
    ],
)
def test_what_makes_no_sense_is_said_with_its_place(
    model: dict[str, Any], pool: dict[str, Any], told: str
) -> None:
    with pytest.raises(DeploymentFileError) as fault:
        parse(model, pool)
    assert told in fault.value.message


def test_a_fault_of_a_rule_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "deployment.yaml"
    file.write_text(
        "models:\n  m:\n    source: s\n    quantization: nested\n    precision:\n"
        "      minimum: int8\n      rules:\n        - use: int8\n          minPromptTokens: 7\n"
        "        - use: int4\n"
    )
    with pytest.raises(DeploymentFileError) as fault:
        load_deployment_file(file)
    assert fault.value.message.startswith(f"{file}:10: models.m.precision.rules.1.use: int4 is")


def test_models_that_encode_or_run_on_vllm_are_refused_by_their_config(
    tiny_bert_dir: Path, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    foreign = said_to_be_gpt_neox(tiny_llama_dir, tmp_path / "model")
    nested = ModelSettings(source="x", quantization="nested")
    encoder = open_model_directory(tiny_bert_dir)
    for directory in (encoder, open_model_directory(foreign, any_decoder=True)):
        with pytest.raises(ConfigurationError, match=r"models\.m\.quantization") as caught:
            check_engine_switches("m", nested, directory)
        assert caught.value.param == "models.m.quantization"
        check_engine_switches("m", ModelSettings(source="x", quantization="int8"), directory)
    check_engine_switches("m", nested, open_model_directory(tiny_llama_dir))
