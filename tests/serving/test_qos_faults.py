"""QoS that the engine of a model would not heed: refused before it serves, and while it does."""

from pathlib import Path
from typing import Any

import pytest

from deepseek.core.errors import ConfigurationError
from deepseek.serving.qos_faults import check_engine_takes_qos
from deepseek.serving.settings import ModelSettings
from deepseek.weights.model_directory import ModelDirectory, open_model_directory
from tests.tiny_models import said_to_be_gpt_neox

BATCHING: list[dict[str, Any]] = [
    {"policy": "fixed"},
    {"min_batch_size": 4},
    {"max_batch_size": 4},
    {"max_wait_time": 0.2},
    {"strict": True},
]
HEEDED: dict[str, Any] = {
    "priority": "critical",
    "reserved_share": 0.5,
    "deadline": {"ttft": 1.0},
    "late": "refuse",
}


def settings(engine: str, qos: dict[str, Any]) -> ModelSettings:
    return ModelSettings.model_validate({"source": "x", "engine": engine, "qos": qos})


@pytest.fixture
def foreign(tiny_llama_dir: Path, tmp_path: Path) -> ModelDirectory:
    path = said_to_be_gpt_neox(tiny_llama_dir, tmp_path / "model")
    return open_model_directory(path, any_decoder=True)


@pytest.mark.parametrize("qos", BATCHING, ids=lambda qos: next(iter(qos)))
def test_batching_of_a_model_on_vllm_is_refused_with_its_field(
    qos: dict[str, Any], foreign: ModelDirectory, tiny_llama_dir: Path
) -> None:
    (field,) = qos
    own = open_model_directory(tiny_llama_dir)
    for engine, directory in (("vllm", own), ("vllm", foreign), ("auto", foreign)):
        with pytest.raises(ConfigurationError, match=rf"models\.m\.qos\.{field}: .*vLLM") as caught:
            check_engine_takes_qos("m", settings(engine, qos), directory)
        assert caught.value.param == f"models.m.qos.{field}"
    for engine in ("auto", "torch"):
        check_engine_takes_qos("m", settings(engine, qos), own)


def test_shares_and_deadlines_hold_on_every_engine(
    foreign: ModelDirectory, tiny_bert_dir: Path
) -> None:
    check_engine_takes_qos("m", settings("vllm", HEEDED), foreign)
    check_engine_takes_qos("m", settings("auto", HEEDED), foreign)
    encoder = open_model_directory(tiny_bert_dir)
    check_engine_takes_qos("m", settings("auto", HEEDED | BATCHING[0]), encoder)
