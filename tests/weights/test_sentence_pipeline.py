"""The module files of sentence-transformers directories, old spelling and new."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from deepseek.core.errors import CorruptWeights, ModelSourceError, UnsupportedModel
from deepseek.weights.sentence_pipeline import read_sentence_pipeline

MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def write(path: Path, *kinds: str, pooling: dict[str, Any] = MEAN) -> Path:
    modules = [
        {"idx": index, "path": f"{index}_{kind}" if index else "", "type": f"some.package.{kind}"}
        for index, kind in enumerate(kinds)
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    for index, kind in enumerate(kinds):
        directory = path / f"{index}_{kind}"
        directory.mkdir()
        if kind == "Pooling":
            (directory / "config.json").write_text(json.dumps(pooling))
        if kind == "Dense":
            config = {"activation_function": "torch.nn.modules.activation.Tanh"}
            (directory / "config.json").write_text(json.dumps(config))
            tensors = {"linear.weight": np.zeros((2, 8), np.float32)}
            save_file(tensors, directory / "model.safetensors")
    return path


def test_a_plain_directory_has_no_pipeline(tmp_path: Path) -> None:
    assert read_sentence_pipeline(tmp_path) is None


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (MEAN, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_max_tokens": True, "include_prompt": True}, "max"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_pooling_is_read_in_both_spellings(
    tmp_path: Path, pooling: dict[str, Any], expected: str
) -> None:
    pipeline = read_sentence_pipeline(write(tmp_path, "Transformer", "Pooling", pooling=pooling))
    assert pipeline is not None
    assert (pipeline.pooling, pipeline.normalize, pipeline.dense) == (expected, False, ())


def test_dense_and_normalisation_are_read_in_order(tmp_path: Path) -> None:
    write(tmp_path, "Transformer", "Pooling", "Dropout", "Dense", "Normalize")
    pipeline = read_sentence_pipeline(tmp_path)
    assert pipeline is not None
    assert pipeline.normalize
    (dense,) = pipeline.dense
    assert dense.path == tmp_path / "3_Dense"
    assert dense.activation == "torch.nn.modules.activation.Tanh"
    assert (dense.in_features, dense.out_features) == (8, 2)


@pytest.mark.parametrize(
    "kinds",
    [("Transformer", "Pooling", "Normalize", "Dense"), ("Transformer", "Pooling", "LayerNorm")],
)
def test_a_pipeline_that_would_be_computed_wrongly_is_refused(
    tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    with pytest.raises(UnsupportedModel, match=f"module '{kinds[-1]}' is not supported"):
        read_sentence_pipeline(write(tmp_path, *kinds))


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_weightedmean_tokens": True},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
        {"pooling_mode": "lasttoken"},
        {},
    ],
)
def test_pooling_that_is_not_supported_is_refused(tmp_path: Path, pooling: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match="is not supported"):
        read_sentence_pipeline(write(tmp_path, "Transformer", "Pooling", pooling=pooling))


def test_a_dense_module_without_weights_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "Transformer", "Pooling", "Dense")
    (tmp_path / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(CorruptWeights, match="is missing"):
        read_sentence_pipeline(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[1]", "["])
def test_a_broken_module_list_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(ModelSourceError, match=r"modules\.json is not"):
        read_sentence_pipeline(tmp_path)
