"""Decoder families with experts or latent attention, against transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from deepseek.core.errors import CorruptWeights, UnsupportedModel
from deepseek.engine.models.base import Decoder
from deepseek.engine.models.registry import load_decoder
from deepseek.engine.ops.reference import ReferenceOps
from tests.engine.models.paged import full_logits, greedy_answers
from tests.tiny_models import write_deepseek_v2, write_deepseek_v3, write_qwen3_moe

FAMILIES = ["qwen3_moe", "mixtral", "deepseek_v2", "deepseek_v3"]
VARIANTS: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "qwen3-moe, probabilities as they are": (write_qwen3_moe, {"norm_topk_prob": False}),
    "qwen3-moe, every second layer": (write_qwen3_moe, {"decoder_sparse_step": 2}),
    "qwen3-moe, tied": (write_qwen3_moe, {"tie_word_embeddings": True}),
    "v2, best groups": (
        write_deepseek_v2,
        {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
    ),
    "v2, biases in every MLP": (write_deepseek_v2, {"mlp_bias": True}),
    "v3, plain queries": (write_deepseek_v3, {"q_lora_rank": None}),
    "v3, compressed queries with biases": (write_deepseek_v3, {"attention_bias": True}),
    "v3, halves": (write_deepseek_v3, {"rope_interleave": False}),
    "v3, one group": (write_deepseek_v3, {"n_group": 1, "topk_group": 1}),
    "v3, sigmoids as they are": (write_deepseek_v3, {"norm_topk_prob": False}),
    "v3, no YaRN": (
        write_deepseek_v3,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
    ),
    "v3, all layers sparse": (write_deepseek_v3, {"first_k_dense_replace": 0}),
    "v3, tied": (write_deepseek_v3, {"tie_word_embeddings": True}),
}
PROMPT_LENGTHS = (1, 40, 7, 150, 23)
NUM_NEW = 24


def load(path: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    return load_decoder(path, dtype=dtype, device="cpu", ops=ReferenceOps())


def prompts() -> list[list[int]]:
    torch.manual_seed(11)
    return [torch.randint(512, (length,)).tolist() for length in PROMPT_LENGTHS]


def reference_answers(path: Path) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    answers = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=NUM_NEW,
                max_new_tokens=NUM_NEW,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        answers.append(output[0, len(prompt) :].tolist())
    return answers


def assert_same_logits(path: Path) -> None:
    tokens = prompts()[3]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0]
    logits = full_logits(load(path), tokens)
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_equal_transformers_however_steps_are_cut(
    family: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(f"tiny_{family}_dir")
    expected, decoder = reference_answers(path), load(path)
    assert len({tuple(answer) for answer in expected}) == len(expected)
    for chunk, padding in ((512, 0), (7, 3)):
        answers = greedy_answers(decoder, prompts(), NUM_NEW, chunk=chunk, padding=padding)
        assert answers == expected


@pytest.mark.timeout(60)
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_a_family_have_transformers_logits(variant: str, tmp_path: Path) -> None:
    write, changes = VARIANTS[variant]
    assert_same_logits(write(tmp_path / "model", **changes))


def test_a_latent_is_all_that_is_stored(tiny_deepseek_v3_dir: Path) -> None:
    shape = load(tiny_deepseek_v3_dir).kv_shape
    assert (shape.num_kv_heads, shape.key_dim, shape.value_dim) == (1, 24 + 16, 24)
    assert shape.token_bytes == 2 * (24 + 16) * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_stays_close_to_float32(family: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(f"tiny_{family}_dir")
    tokens = prompts()[1][:8]
    exact = full_logits(load(path), tokens)
    rough = full_logits(load(path, torch.bfloat16), tokens)
    assert rough.dtype is torch.bfloat16
    # The first position attends to itself alone and meets the fewest gates that could tip over.
    assert (rough[0] - exact[0]).norm() < 0.1 * exact[0].norm()


def edited(source: Path, target: Path, **changes: Any) -> Path:
    """Copy a model directory and change its config; None removes a key."""
    shutil.copytree(source, target)
    file = target / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return target


@pytest.mark.parametrize(
    ("family", "changes", "tensor"),
    [
        ("qwen3_moe", {"num_local_experts": 9}, r"layers\.1\.mlp\.gate\.weight"),
        ("qwen3_moe", {"num_local_experts": 4}, r"layers\.1\.mlp\.gate\.weight"),
        ("qwen3_moe", {"moe_intermediate_size": 40}, r"experts\.0\.gate_proj\.weight"),
        ("qwen3_moe", {"mlp_only_layers": []}, r"layers\.0\.mlp\.gate\.weight"),
        ("qwen3_moe", {"head_dim": 16}, r"q_proj\.weight"),
        ("mixtral", {"intermediate_size": 96}, r"experts\.0\.w1\.weight"),
        ("deepseek_v3", {"kv_lora_rank": 32}, r"kv_a_proj_with_mqa\.weight"),
        ("deepseek_v3", {"v_head_dim": 16}, r"kv_b_proj\.weight"),
        ("deepseek_v3", {"q_lora_rank": 16}, r"q_a_proj\.weight"),
        ("deepseek_v3", {"n_shared_experts": 2}, r"shared_experts\.gate_proj\.weight"),
        ("deepseek_v3", {"first_k_dense_replace": 0}, r"layers\.0\.mlp\.gate\.weight"),
        ("deepseek_v3", {"num_hidden_layers": 3}, r"layers\.2\.self_attn"),
        ("deepseek_v3", {"vocab_size": 500}, r"embed_tokens\.weight"),
    ],
)
def test_a_config_that_contradicts_the_weights_names_the_tensor(
    family: str,
    changes: dict[str, Any],
    tensor: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    path = edited(request.getfixturevalue(f"tiny_{family}_dir"), tmp_path / "m", **changes)
    with pytest.raises(CorruptWeights, match=tensor):
        load(path)


def test_a_missing_expert_is_named(tiny_mixtral_dir: Path, tmp_path: Path) -> None:
    path = edited(tiny_mixtral_dir, tmp_path / "m")
    file = path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    save_file(tensors, file)
    with pytest.raises(CorruptWeights, match=r"experts\.3\.w2\.weight' is missing"):
        load(path)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("qwen3_moe", {"num_experts_per_tok": 9}, "9 of 8 experts"),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob True"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method 'noaux_tc'"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func 'softmax'"),
        ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq 2"),
        ("deepseek_v3", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("deepseek_v3", {"n_group": 3}, "best 2 of 3 groups"),
        ("deepseek_v3", {"n_group": 8}, "best 2 of 8 groups"),
        ("deepseek_v3", {"topk_group": 5}, "best 5 of 4 groups"),
        ("deepseek_v3", {"num_experts_per_tok": 5}, "5 of 8 experts"),
        ("qwen3_moe", {"quantization_config": {"quant_method": "gptq"}}, "'gptq'.*unquantised"),
    ],
)
def test_an_option_that_is_not_computed_is_refused(
    family: str,
    changes: dict[str, Any],
    message: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    path = edited(request.getfixturevalue(f"tiny_{family}_dir"), tmp_path / "m", **changes)
    with pytest.raises(UnsupportedModel, match=message):
        load(path)


def test_the_hubs_own_config_of_deepseek_v3_is_read(
    tiny_deepseek_v3_dir: Path, tmp_path: Path
) -> None:
    rope = json.loads((tiny_deepseek_v3_dir / "config.json").read_text())["rope_parameters"]
    kind, theta = rope.pop("rope_type"), rope.pop("rope_theta")
    path = edited(
        tiny_deepseek_v3_dir,
        tmp_path / "m",
        auto_map={"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
        dtype=None,
        moe_layer_freq=1,
        ep_size=1,
        rope_parameters=None,
        rope_scaling={"type": kind, **rope},
        rope_theta=theta,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        torch_dtype="bfloat16",
    )
    tokens = prompts()[2]
    assert torch.equal(
        full_logits(load(path), tokens), full_logits(load(tiny_deepseek_v3_dir), tokens)
    )
