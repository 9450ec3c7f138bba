"""Adapters of a deployment file are checked before a worker starts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from deepseek import app
from deepseek.core.errors import ModelSourceError
from deepseek.deployment_file import load_deployment_file
from deepseek.serving.settings import ModelSettings
from deepseek.weights.adapter_directory import CONFIG_FILE, WEIGHTS_FILE
from deepseek.weights.progress import SilentProgress


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "adapters" / "sql"
    path.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (path / CONFIG_FILE).write_text(json.dumps(config))
    prefix = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    matrices = {f"{prefix}A.weight": np.ones((4, 64)), f"{prefix}B.weight": np.ones((64, 4))}
    save_file({k: v.astype(np.float32) for k, v in matrices.items()}, path / WEIGHTS_FILE)
    return path


def find(source: Path, base_dir: Path, **settings: Any) -> None:
    given = ModelSettings(source=str(source), **settings)
    app.find_model("m", given, base_dir=base_dir, progress=SilentProgress())


def test_an_adapter_beside_the_file_is_found(
    tiny_llama_dir: Path, adapter: Path, tmp_path: Path
) -> None:
    find(tiny_llama_dir, tmp_path, adapters={"sql": "adapters/sql"}, adapter_dirs=["adapters"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapters": {"x": "nowhere"}}, r"models\.m\.adapters\.x: .*config\.json cannot be read"),
        ({"adapter_dirs": ["nowhere"]}, r"models\.m\.adapter_dirs: .*nowhere is not a directory"),
        (
            {"adapters": {"sql": "adapters/sql"}, "max_adapter_rank": 2},
            r"models\.m\.adapters\.sql: has rank 4; models\.m\.max_adapter_rank is 2: raise it",
        ),
    ],
)
def test_what_is_wrong_with_an_adapter_is_told_under_its_key(
    settings: dict[str, Any], message: str, tiny_llama_dir: Path, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelSourceError, match=message):
        find(tiny_llama_dir, tmp_path, **settings)


def test_a_model_that_does_not_generate_takes_no_adapters(
    tiny_bert_dir: Path, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelSourceError, match="a model of task 'embed' takes no adapters"):
        find(tiny_bert_dir, tmp_path, adapters={"sql": "adapters/sql"})


def test_a_worker_gets_paths_that_do_not_depend_on_where_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("models: {m: {source: x, adapters: {a: ./p, b: /q}, adapter_dirs: [..]}}\n")
    file = app.with_absolute_paths(load_deployment_file(path), base_dir=tmp_path)
    assert file.models["m"].adapters == {"a": str(tmp_path.resolve() / "p"), "b": "/q"}
    assert file.models["m"].adapter_dirs == [str(tmp_path.resolve().parent)]
