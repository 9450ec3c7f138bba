"""Every encoder family against transformers: states, pooled vectors and logits."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from deepseek.core.errors import CorruptWeights, UnsupportedModel
from deepseek.engine.models.encoder import Encoder, load_encoder
from deepseek.engine.models.packed_bert import MODEL_TYPES
from deepseek.engine.models.packed_encoder import PackedEncoder
from deepseek.engine.models.padded_encoder import PaddedEncoder
from deepseek.engine.ops.reference import ReferenceOps
from deepseek.weights.model_directory import ENCODER_MODEL_TYPES, open_model_directory

VOCAB = 300
POSITIONS = 80
NUM_LABELS = 3
LABELS = {index: f"label {index}" for index in range(NUM_LABELS)}
TOLERANCE = 1e-5

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,
    "layer_norm_eps": 1e-7,
    "pad_token_id": 0,
}
_ROBERTA = {"pad_token_id": 1, "type_vocab_size": 1}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {}),
    "roberta": ("Roberta", _ROBERTA),
    "xlm-roberta": ("XLMRoberta", _ROBERTA),
    "camembert": ("Camembert", _ROBERTA),
    "electra": ("Electra", {"embedding_size": 16}),
    "albert": ("Albert", {"embedding_size": 16, "num_hidden_groups": 2, "inner_group_num": 2}),
    "distilbert": (
        "DistilBert",
        {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "activation": "gelu"},
    ),
    "mpnet": ("MPNet", _ROBERTA),
    "deberta-v2": ("DebertaV2", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "modernbert": ("ModernBert", {"global_attn_every_n_layers": 2, "local_attention": 8}),
}
_DISTILBERT_NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads")

WriteModel = Callable[..., Path]


@pytest.fixture
def write_model(tmp_path: Path, tiny_bert_dir: Path) -> WriteModel:
    """Writes a tiny model of a family with random weights."""

    def write(family: str, *, head: str = "Model", **changes: Any) -> Path:
        torch.manual_seed(1)
        name, own = _CONFIGS[family]
        options = {**_COMMON, **own, **changes}
        if family == "distilbert":
            options = {k: v for k, v in options.items() if k not in _DISTILBERT_NAMES}
        if head == "ForSequenceClassification":
            options["id2label"] = LABELS
        model = getattr(transformers, name + head)(
            getattr(transformers, f"{name}Config")(**options)
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # a forgotten bias of zero would not be noticed
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        path = tmp_path / f"{family}{head}"
        model.save_pretrained(path)
        shutil.copyfile(tiny_bert_dir / "tokenizer.json", path / "tokenizer.json")
        return path

    return write


def load(path: Path, dtype: torch.dtype = torch.float32) -> Encoder:
    return load_encoder(open_model_directory(path), dtype=dtype, device="cpu", ops=ReferenceOps())


def sequences(*, pad_id: int | None = None, seed: int = 3) -> list[list[int]]:
    """Lengths of 1 to 70 tokens; with `pad_id`, some have it in their middle."""
    rng = random.Random(seed)
    lengths = [7, 1, 70, 2, 33, 16, 5]
    made = [[rng.randrange(5, VOCAB) for _ in range(length)] for length in lengths]
    if pad_id is not None:
        made[2][30] = made[2][31] = made[4][0] = pad_id
    return made


def expected(
    path: Path, tokens: list[int], *, types: list[int] | None = None, pooling: str = "mean"
) -> npt.NDArray[np.float32]:
    """What transformers computes for one sequence alone."""
    config = json.loads((path / "config.json").read_text())
    has_logits = config["architectures"][0].endswith("ForSequenceClassification")
    loader = (
        transformers.AutoModelForSequenceClassification if has_logits else transformers.AutoModel
    )
    model = loader.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    inputs = {"input_ids": torch.tensor([tokens])}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if types is not None:
        inputs["token_type_ids"] = torch.tensor([types])
    with torch.inference_mode():
        output = model(**inputs)
    if has_logits:
        return np.asarray(output.logits[0].numpy())
    states = output.last_hidden_state[0]
    pooled = {"mean": states.mean(0), "cls": states[0], "max": states.amax(0)}[pooling]
    return np.asarray(pooled.numpy())


def normalized(rows: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    table = np.stack(rows)
    unit: npt.NDArray[np.float32] = table / np.linalg.norm(table, axis=1, keepdims=True)
    return unit


def write_pooling(path: Path, mode: str) -> None:
    (path / "modules.json").write_text(
        json.dumps(
            [
                {"path": "", "type": "sentence_transformers.models.Transformer"},
                {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            ]
        )
    )
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))


def test_every_encoder_family_is_tested() -> None:
    assert set(_CONFIGS) == set(ENCODER_MODEL_TYPES)


@pytest.mark.parametrize("family", ENCODER_MODEL_TYPES)
def test_vectors_equal_transformers_batched_and_alone(family: str, write_model: WriteModel) -> None:
    path = write_model(family)
    encoder = load(path)
    inputs = sequences()
    wanted = normalized([expected(path, tokens) for tokens in inputs])
    np.testing.assert_allclose(encoder.encode(inputs), wanted, atol=TOLERANCE)
    alone = np.concatenate([encoder.encode([tokens]) for tokens in inputs])
    np.testing.assert_allclose(alone, wanted, atol=TOLERANCE)
    assert encoder.width == wanted.shape[1]
    assert encoder.vocab_size == VOCAB


@pytest.mark.parametrize("family", ENCODER_MODEL_TYPES)
def test_logits_equal_transformers_batched_and_alone(family: str, write_model: WriteModel) -> None:
    path = write_model(family, head="ForSequenceClassification")
    encoder = load(path)
    inputs = sequences()
    wanted = np.stack([expected(path, tokens) for tokens in inputs])
    np.testing.assert_allclose(encoder.encode(inputs), wanted, rtol=TOLERANCE, atol=TOLERANCE)
    alone = np.concatenate([encoder.encode([tokens]) for tokens in inputs])
    np.testing.assert_allclose(alone, wanted, rtol=TOLERANCE, atol=TOLERANCE)
    assert encoder.width == NUM_LABELS


@pytest.mark.parametrize("family", ENCODER_MODEL_TYPES)
def test_families_without_relative_positions_run_packed(
    family: str, write_model: WriteModel
) -> None:
    cls = PackedEncoder if family in MODEL_TYPES else PaddedEncoder
    assert isinstance(load(write_model(family)), cls)
    assert (family in MODEL_TYPES) == (family not in ("mpnet", "deberta-v2", "modernbert"))


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_pooling_follows_the_directory(family: str, pooling: str, write_model: WriteModel) -> None:
    path = write_model(family)
    write_pooling(path, "cls_token" if pooling == "cls" else f"{pooling}_tokens")
    inputs = sequences()
    wanted = np.stack([expected(path, tokens, pooling=pooling) for tokens in inputs])
    np.testing.assert_allclose(load(path).encode(inputs), wanted, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("family", ["roberta", "bert", "mpnet"])
def test_padding_tokens_inside_a_sequence_are_numbered_as_transformers_does(
    family: str, write_model: WriteModel
) -> None:
    path = write_model(family)
    inputs = sequences(pad_id=1)
    wanted = normalized([expected(path, tokens) for tokens in inputs])
    np.testing.assert_allclose(load(path).encode(inputs), wanted, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["bert", "albert", "electra", "deberta-v2"])
def test_token_types_are_heeded_where_the_model_has_them(
    family: str, write_model: WriteModel
) -> None:
    path = write_model(family, head="ForSequenceClassification", type_vocab_size=2)
    encoder = load(path)
    inputs = sequences()
    types: list[list[int] | None] = [[int(i > 2) for i in range(len(row))] for row in inputs]
    types[0] = None
    wanted = np.stack(
        [expected(path, ids, types=row) for ids, row in zip(inputs, types, strict=True)]
    )
    rows = encoder.encode(inputs, type_ids=types)
    np.testing.assert_allclose(rows, wanted, rtol=TOLERANCE, atol=TOLERANCE)
    assert np.abs(rows[1:] - encoder.encode(inputs)[1:]).max() > 100 * TOLERANCE


@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_token_types_are_ignored_where_the_model_has_none(
    family: str, write_model: WriteModel
) -> None:
    encoder = load(write_model(family))
    inputs = sequences()
    types: list[list[int] | None] = [[1] * len(row) for row in inputs]
    assert encoder.num_types == 1
    np.testing.assert_array_equal(encoder.encode(inputs, type_ids=types), encoder.encode(inputs))


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "silu"])
def test_the_activation_is_the_configs(activation: str, write_model: WriteModel) -> None:
    path = write_model("bert", hidden_act=activation)
    inputs = sequences()
    wanted = normalized([expected(path, tokens) for tokens in inputs])
    np.testing.assert_allclose(load(path).encode(inputs), wanted, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet"])
def test_half_precision_stays_close(family: str, write_model: WriteModel) -> None:
    path = write_model(family)
    inputs = sequences()
    rows = load(path, torch.bfloat16).encode(inputs)
    assert rows.dtype == np.float32
    assert (rows * load(path).encode(inputs)).sum(axis=1).min() > 0.995


def test_a_masked_language_model_is_an_encoder(write_model: WriteModel) -> None:
    path = write_model("bert", head="ForMaskedLM")
    inputs = sequences()
    wanted = normalized([expected(path, tokens) for tokens in inputs])
    np.testing.assert_allclose(load(path).encode(inputs), wanted, atol=TOLERANCE)


def test_norms_may_be_called_gamma_and_beta(write_model: WriteModel) -> None:
    path = write_model("bert")
    wanted = load(path).encode(sequences())
    file = path / "model.safetensors"
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(file).items()
    }
    assert any(name.endswith("gamma") for name in renamed)
    save_file(renamed, file)
    np.testing.assert_array_equal(load(path).encode(sequences()), wanted)


def test_a_causal_bert_keeps_its_causal_attention(write_model: WriteModel) -> None:
    path = write_model("bert", is_decoder=True)
    encoder = load(path)
    assert isinstance(encoder, PaddedEncoder)
    tokens = sequences()[2]
    wanted = normalized([expected(path, tokens)])
    np.testing.assert_allclose(encoder.encode([tokens]), wanted, atol=TOLERANCE)


def test_relative_position_embeddings_are_refused(write_model: WriteModel) -> None:
    path = write_model("bert")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(
        json.dumps({**config, "position_embedding_type": "relative_key"})
    )
    with pytest.raises(UnsupportedModel, match="relative_key"):
        load(path)


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_a_missing_tensor_is_refused_by_name(family: str, write_model: WriteModel) -> None:
    path = write_model(family)
    file = path / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if "layer.1.attention" in name)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CorruptWeights, match=name.replace(".", r"\.")):
        load(path)


def test_weights_that_contradict_the_config_are_refused(write_model: WriteModel) -> None:
    path = write_model("bert")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(CorruptWeights, match=r"intermediate\.dense"):
        load(path)


def test_a_packed_batch_fills_its_budget_and_begins_with_the_oldest(
    write_model: WriteModel,
) -> None:
    encoder = load(write_model("bert"))
    lengths = [60, 30, 50, 5, 10, 10, 4]
    assert encoder.choose(lengths, max_tokens=100) == [0, 1, 3, 6]
    assert encoder.choose(lengths, max_tokens=16) == [0]
    assert encoder.choose([4], max_tokens=16) == [0]


def test_a_padded_batch_counts_its_padding(write_model: WriteModel) -> None:
    encoder = load(write_model("mpnet"))
    lengths = [10, 30, 9, 50, 11, 10]
    assert encoder.choose(lengths, max_tokens=40) == [0, 2, 5]
    assert encoder.choose(lengths, max_tokens=44) == [0, 2, 4, 5]
    assert encoder.choose(lengths, max_tokens=4) == [0]


@pytest.mark.timeout(900)
def test_the_real_embedder_finds_paraphrases(model_home: Path) -> None:
    path = model_home / "models" / "minilm-l6"
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.no_padding()
    texts = ["A man is eating food.", "A man eats something.", "The rates were left unchanged."]
    rows = load(path).encode([tokenizer.encode(text).ids for text in texts])
    assert rows[0] @ rows[1] == pytest.approx(0.875, abs=0.001)
    assert rows[0] @ rows[2] < 0.2


@pytest.mark.timeout(900)
def test_the_real_classifier_tells_good_from_bad(model_home: Path) -> None:
    path = model_home / "models" / "sentiment"
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.no_padding()
    texts = ["A wonderful, moving film.", "A dull and terrible disappointment."]
    rows = load(path).encode([tokenizer.encode(text).ids for text in texts])
    assert rows.argmax(axis=1).tolist() == [1, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_vectors_on_a_gpu_equal_those_on_a_cpu(family: str, write_model: WriteModel) -> None:
    path = write_model(family)
    encoder = load_encoder(
        open_model_directory(path), dtype=torch.float32, device="cuda", ops=ReferenceOps()
    )
    np.testing.assert_allclose(
        encoder.encode(sequences()), load(path).encode(sequences()), atol=TOLERANCE
    )
