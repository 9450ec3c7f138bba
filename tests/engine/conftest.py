"""Engines that several modules share: vLLM takes a minute to load."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.generation import END_AT, PROMPT, greedy_reference, worker_spec
from tests.engine.hosted import HostedEngine, hosted_engine, vllm_python


@pytest.fixture(scope="session")
def reference(tiny_qwen3_dir: Path) -> Any:
    """The model below in transformers' own code."""
    import torch  # noqa: PLC0415 - seconds for the others
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    return AutoModelForCausalLM.from_pretrained(tiny_qwen3_dir, dtype=torch.float32)


@pytest.fixture(scope="session")
def contract_dir(tiny_qwen3_dir: Path, reference: Any, tmp_path_factory: Any) -> Path:
    """A model whose own end is a token of one of its greedy answers, by config.json alone."""
    path = Path(shutil.copytree(tiny_qwen3_dir, tmp_path_factory.mktemp("contract") / "model"))
    answer = greedy_reference(reference, PROMPT, END_AT + 1)
    assert answer.index(answer[END_AT]) == END_AT
    config = json.loads((path / "config.json").read_text())
    config["eos_token_id"] = [config["eos_token_id"], answer[END_AT]]
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="session")
def vllm_engine(contract_dir: Path, tmp_path_factory: Any) -> Iterator[HostedEngine]:
    """An engine of vLLM; skips where there is no environment for it."""
    spec, work = worker_spec(contract_dir, "vllm"), tmp_path_factory.mktemp("host")
    with hosted_engine(vllm_python(), spec, work=work) as engine:
        yield engine
