"""PEFT directories: what is read of them, and everything that is refused with its reason."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from deepseek.core.errors import AdapterRejected
from deepseek.weights.adapter_directory import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterDirectory,
    open_adapter_directory,
)

LAYER = "model.layers.0.self_attn.q_proj"
OTHER = "model.layers.1.self_attn.q_proj"
PREFIX = "base_model.model."


def matrices(
    name: str, rank: int = 4, *, width: int = 8, dtype: Any = np.float32
) -> dict[str, np.ndarray]:
    return {
        f"{PREFIX}{name}.lora_A.weight": np.ones((rank, width), dtype),
        f"{PREFIX}{name}.lora_B.weight": np.ones((2 * width, rank), dtype),
    }


def write(
    path: Path, tensors: dict[str, np.ndarray] | None = None, **changes: Any
) -> AdapterDirectory:
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "bias": "none",
        "target_modules": ["q_proj"],
        **changes,
    }
    (path / CONFIG_FILE).write_text(json.dumps(config))
    save_file(matrices(LAYER) if tensors is None else tensors, path / WEIGHTS_FILE)
    return open_adapter_directory(path)


def test_layers_are_read_with_their_shapes_and_scale(tmp_path: Path) -> None:
    (layer,) = write(tmp_path).layers
    assert (layer.name, layer.rank) == (LAYER, 4)
    assert (layer.in_features, layer.out_features) == (8, 16)
    assert layer.scale == 2.0
    assert layer.down == f"{PREFIX}{LAYER}.lora_A.weight"


@pytest.mark.parametrize(
    ("changes", "scales"),
    [
        ({"use_rslora": True}, (8 / math.sqrt(4), 8 / math.sqrt(2))),
        ({}, (2.0, 4.0)),
        ({"alpha_pattern": {"q_proj": 6}}, (1.5, 3.0)),
        ({"alpha_pattern": {r"layers\.1\..*": 6}}, (2.0, 3.0)),
        ({"alpha_pattern": {f"^{LAYER}": 1, ".*": 2}}, (0.25, 1.0)),
        ({"alpha_pattern": {"roj": 1}}, (2.0, 4.0)),  # a pattern begins at a dot
    ],
)
def test_ranks_and_scales_follow_the_patterns(
    changes: dict[str, Any], scales: tuple[float, float], tmp_path: Path
) -> None:
    both = matrices(LAYER) | matrices(OTHER, rank=2)
    adapter = write(tmp_path, both, rank_pattern={OTHER: 2}, **changes)
    assert adapter.max_rank == 4
    assert tuple(layer.scale for layer in adapter.layers) == pytest.approx(scales)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"use_dora": True}, "use_dora: DoRA is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: layers trained and saved as a whole"),
        ({"trainable_token_indices": [1]}, "trained token embeddings"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "bare parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base model's weights"),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"r": 8}, f"layer '{LAYER}' has rank 4, {CONFIG_FILE} says 8"),
        ({"r": 0}, "r is 0; it must be a number above 0"),
        ({"r": None}, "r is None"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern.q_proj is -1"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern is not valid"),
        ({"alpha_pattern": [16]}, "alpha_pattern is not a mapping"),
        ({"target_modules": ["q_proj", "v_proj"]}, "target_modules names 'v_proj', but"),
    ],
)
def test_what_would_answer_wrongly_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterRejected) as caught:
        write(tmp_path, **changes)
    assert message in caught.value.message
    assert str(tmp_path / CONFIG_FILE) in caught.value.message or WEIGHTS_FILE in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no LoRA matrices"),
        ({"lm_head.weight": np.ones((2, 2))}, "tensor 'lm_head.weight' is not a LoRA matrix"),
        (
            {f"{PREFIX}model.embed_tokens.lora_embedding_A": np.ones((4, 8))},
            "not a LoRA matrix of a linear layer",
        ),
        (
            {f"{PREFIX}{LAYER}.lora_magnitude_vector": np.ones(8)},
            "not a LoRA matrix of a linear layer",
        ),
        ({f"{PREFIX}{LAYER}.lora_A.weight": np.ones((4, 8))}, "only one of its two"),
        (matrices(LAYER, dtype=np.int8), "is stored as I8; store it as F32, BF16 or F16"),
        (
            {**matrices(LAYER), f"{PREFIX}{LAYER}.lora_B.weight": np.ones((16, 3), np.float32)},
            r"shapes (4, 8) and (16, 3)",
        ),
        (
            {**matrices(LAYER), f"{PREFIX}{LAYER}.lora_A.weight": np.ones((4, 8, 1), np.float32)},
            r"shapes (4, 8, 1) and",
        ),
    ],
)
def test_tensors_that_are_no_adapter_are_refused(
    tensors: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterRejected) as caught:
        write(tmp_path, tensors)
    assert message in caught.value.message


def test_a_broken_directory_is_refused_with_the_file_at_fault(tmp_path: Path) -> None:
    with pytest.raises(AdapterRejected, match=r"adapter_config\.json cannot be read"):
        open_adapter_directory(tmp_path / "nowhere")
    write(tmp_path)
    weights = tmp_path / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(AdapterRejected, match=r"adapter_model\.safetensors holds"):
        open_adapter_directory(tmp_path)
    weights.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterRejected, match="a pickle, which may run code"):
        open_adapter_directory(tmp_path)
    (tmp_path / CONFIG_FILE).write_text("[]")
    with pytest.raises(AdapterRejected, match="not a JSON object"):
        open_adapter_directory(tmp_path)
