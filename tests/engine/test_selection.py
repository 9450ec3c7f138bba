"""Which engine a model gets, and what is said where it can get none."""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from deepseek.core.errors import ConfigurationError, UnsupportedModel
from deepseek.core.requests import Task
from deepseek.core.wire import ModelSpec, WorkerSpec
from deepseek.engine.selection import load_model


@pytest.fixture
def foreign_dir(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """A decoder of a family that the torch engine does not know."""
    path = Path(shutil.copytree(tiny_llama_dir, tmp_path / "foreign"))
    config = json.loads((path / "config.json").read_text())
    config.update(architectures=["GPTNeoXForCausalLM"], model_type="gpt_neox")
    (path / "config.json").write_text(json.dumps(config))
    return path


def specs(path: Path, task: Task = Task.GENERATE, engine: Any = "auto") -> Any:
    model = ModelSpec(name="m", path=str(path), task=task, engine=engine, dtype="float32")
    spec = WorkerSpec(
        pool="gpu", socket_path="", device="cpu", models=[model], kv_cache_bytes=1 << 20
    )
    return model, spec


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_our_families_run_on_the_torch_engine(tiny_llama_dir: Path, engine: Any) -> None:
    loaded, info = load_model(*specs(tiny_llama_dir, engine=engine), device="cpu")
    assert type(loaded).__module__ == "deepseek.engine.engines.decoder"
    assert (info.name, info.error, info.vocab_size) == ("m", None, 512)


def test_encoders_run_on_the_torch_engine(tiny_bert_dir: Path) -> None:
    loaded, _ = load_model(*specs(tiny_bert_dir, Task.EMBED), device="cpu")
    assert type(loaded).__module__ == "deepseek.engine.engines.encoder"


@pytest.mark.skipif(find_spec("vllm") is not None, reason="this environment has vLLM")
def test_without_vllm_another_family_names_both_engines(foreign_dir: Path) -> None:
    with pytest.raises(UnsupportedModel) as error:
        load_model(*specs(foreign_dir), device="cpu")
    for words in ("GPTNeoXForCausalLM", "torch engine", f"{sys.executable} has no vllm",
                  "pools.gpu.python"):  # fmt: skip
        assert words in error.value.message


@pytest.mark.skipif(find_spec("vllm") is not None, reason="this environment has vLLM")
def test_without_vllm_asking_for_it_says_where_to_put_it(tiny_llama_dir: Path) -> None:
    with pytest.raises(ConfigurationError) as error:
        load_model(*specs(tiny_llama_dir, engine="vllm"), device="cpu")
    for words in ("models.m.engine", "No module named 'vllm'", "pools.gpu.python"):
        assert words in error.value.message


def test_the_torch_engine_is_not_asked_for_what_it_does_not_know(foreign_dir: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"GPTNeoXForCausalLM.*vLLM may run it"):
        load_model(*specs(foreign_dir, engine="torch"), device="cpu")
