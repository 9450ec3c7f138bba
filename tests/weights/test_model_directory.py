"""Reads directories that transformers wrote, and broken ones."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from deepseek.core.errors import CorruptWeights, DeepseekError, ModelSourceError, UnsupportedModel
from deepseek.core.requests import Task
from deepseek.weights.cache import ModelCache
from deepseek.weights.model_directory import open_model_directory


@pytest.fixture
def llama(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "llama"))


@pytest.fixture
def bert(tiny_bert_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bert_dir, tmp_path / "bert"))


def edit_json(file: Path, **changes: Any) -> None:
    value = json.loads(file.read_text()) if file.exists() else {}
    value.update(changes)
    file.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("fixture", "architecture"),
    [
        ("tiny_llama_dir", "LlamaForCausalLM"),
        ("tiny_qwen2_dir", "Qwen2ForCausalLM"),
        ("tiny_qwen3_dir", "Qwen3ForCausalLM"),
        ("tiny_gpt2_dir", "GPT2LMHeadModel"),
        ("tiny_qwen3_moe_dir", "Qwen3MoeForCausalLM"),
        ("tiny_mixtral_dir", "MixtralForCausalLM"),
        ("tiny_deepseek_v2_dir", "DeepseekV2ForCausalLM"),
        ("tiny_deepseek_v3_dir", "DeepseekV3ForCausalLM"),
    ],
)
def test_a_decoder_is_there_to_generate(
    fixture: str, architecture: str, request: pytest.FixtureRequest
) -> None:
    directory = open_model_directory(request.getfixturevalue(fixture))
    assert directory.architecture == architecture
    assert directory.task is Task.GENERATE
    assert directory.max_model_len == 512
    assert directory.eos_token_ids == (2,)
    assert [file.name for file in directory.weight_files] == ["model.safetensors"]
    assert (directory.labels, directory.sentence) == ((), None)


def test_a_plain_encoder_is_there_to_embed(tiny_bert_dir: Path) -> None:
    directory = open_model_directory(tiny_bert_dir)
    assert (directory.task, directory.max_model_len) == (Task.EMBED, 128)
    assert directory.sentence is None


def test_a_sequence_classifier_names_its_labels_in_order(tiny_classifier_dir: Path) -> None:
    directory = open_model_directory(tiny_classifier_dir)
    assert directory.task is Task.CLASSIFY
    assert directory.labels == ("cold", "mild", "hot")
    assert not directory.multi_label


def test_labels_follow_their_numbers_not_their_spelling(
    tiny_classifier_dir: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(tiny_classifier_dir, tmp_path / "c"))
    labels = {str(index): f"label {index}" for index in reversed(range(12))}
    edit_json(path / "config.json", id2label=labels, problem_type="multi_label_classification")
    directory = open_model_directory(path)
    assert directory.labels == tuple(f"label {index}" for index in range(12))
    assert directory.multi_label


def test_end_tokens_come_from_both_configs(llama: Path) -> None:
    edit_json(llama / "config.json", eos_token_id=[2, 7])
    edit_json(llama / "generation_config.json", eos_token_id=[7, 9])
    assert open_model_directory(llama).eos_token_ids == (2, 7, 9)


def test_a_model_without_generation_config_opens(llama: Path) -> None:
    (llama / "generation_config.json").unlink()
    assert open_model_directory(llama).generation_config == {}


def test_a_shorter_sequence_length_of_sentence_transformers_wins(bert: Path) -> None:
    edit_json(bert / "sentence_bert_config.json", max_seq_length=64)
    assert open_model_directory(bert).max_model_len == 64
    edit_json(bert / "sentence_bert_config.json", max_seq_length=4096)
    assert open_model_directory(bert).max_model_len == 128


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta", "camembert", "mpnet"])
def test_families_that_start_counting_late_have_fewer_positions(
    bert: Path, model_type: str
) -> None:
    changes = {"model_type": model_type, "max_position_embeddings": 514, "pad_token_id": 1}
    edit_json(bert / "config.json", **changes)
    assert open_model_directory(bert).max_model_len == 512


def test_all_shards_of_an_index_are_listed(tiny_llama_dir: Path, tmp_path: Path) -> None:
    directory = open_model_directory(write_sharded(tiny_llama_dir, tmp_path / "sharded"))
    names = [file.name for file in directory.weight_files]
    assert len(names) > 1
    assert names == sorted(file.name for file in directory.path.glob("*.safetensors"))


def test_a_manifest_stands_in_place_of_weights_files(tiny_llama_dir: Path, tmp_path: Path) -> None:
    path = ModelCache(tmp_path).add_chunks("m", tiny_llama_dir)
    directory = open_model_directory(path)
    assert directory.weight_files == ()
    assert directory.manifest is not None
    assert directory.weights_bytes > 100_000
    shutil.rmtree(tmp_path / "chunks")
    with pytest.raises(CorruptWeights, match="does not have chunk"):
        open_model_directory(path)


def test_a_missing_shard_is_named(tiny_llama_dir: Path, tmp_path: Path) -> None:
    path = write_sharded(tiny_llama_dir, tmp_path / "sharded")
    victim = sorted(path.glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(CorruptWeights, match=victim.name):
        open_model_directory(path)


def test_a_damaged_shard_is_named(tiny_llama_dir: Path, tmp_path: Path) -> None:
    path = write_sharded(tiny_llama_dir, tmp_path / "sharded")
    victim = sorted(path.glob("*.safetensors"))[1]
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(CorruptWeights, match=victim.name):
        open_model_directory(path)


def write_sharded(source: Path, target: Path) -> Path:
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - seconds for the others

    AutoModelForCausalLM.from_pretrained(source).save_pretrained(target, max_shard_size="60KB")
    shutil.copy(source / "tokenizer.json", target)
    return target


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="nowhere does not exist"):
        open_model_directory(tmp_path / "nowhere")


def test_a_gguf_file_is_told_how_to_come_in(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(ModelSourceError, match="deepseek models add NAME --path"):
        open_model_directory(file)


def test_an_empty_directory_is_told_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match=r"no config\.json"):
        open_model_directory(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1', "\x00", "[" * 100_000])
def test_a_broken_config_is_named(llama: Path, text: str) -> None:
    (llama / "config.json").write_text(text)
    with pytest.raises(ModelSourceError, match=r"config\.json is not"):
        open_model_directory(llama)


def test_a_config_that_is_not_text_is_named(llama: Path) -> None:
    (llama / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelSourceError, match=r"config\.json is not valid JSON"):
        open_model_directory(llama)


def test_a_limit_that_is_no_number_is_named(llama: Path) -> None:
    edit_json(llama / "config.json", max_position_embeddings="many")
    with pytest.raises(ModelSourceError, match="max_position_embeddings must be a whole number"):
        open_model_directory(llama)


def test_a_missing_tokenizer_comes_with_the_remedy(llama: Path) -> None:
    (llama / "tokenizer.json").unlink()
    with pytest.raises(ModelSourceError, match="AutoTokenizer"):
        open_model_directory(llama)


def test_weights_in_another_format_come_with_the_remedy(llama: Path) -> None:
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    with pytest.raises(ModelSourceError, match="save_pretrained"):
        open_model_directory(llama)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["MambaForCausalLM"], "model_type": "mamba"},
        {"architectures": ["T5EncoderModel"], "model_type": "t5"},
        {"architectures": ["BertForTokenClassification"], "model_type": "bert"},
        {"architectures": None},
        {"architectures": []},
    ],
)
def test_an_unknown_architecture_is_told_which_are_known(
    llama: Path, changes: dict[str, Any]
) -> None:
    edit_json(llama / "config.json", **changes)
    with pytest.raises(UnsupportedModel, match=r"LlamaForCausalLM.*GPT2LMHeadModel.*deberta-v2"):
        open_model_directory(llama)


@pytest.mark.parametrize("value", [None, "x", [], {}, -1, 1.5, True, [None], {"a": []}])
def test_a_config_value_of_any_type_is_read_or_refused(
    tiny_classifier_dir: Path, tmp_path: Path, value: Any
) -> None:
    path = Path(shutil.copytree(tiny_classifier_dir, tmp_path / "c"))
    whole = json.loads((path / "config.json").read_text())
    refused = [key for key in whole if is_refused(path, {**whole, key: value})]
    assert set(refused) <= {"architectures", "id2label", "max_position_embeddings", "model_type"}
    assert "architectures" in refused


def is_refused(path: Path, config: dict[str, Any]) -> bool:
    (path / "config.json").write_text(json.dumps(config))
    try:
        open_model_directory(path)
    except DeepseekError:
        return True
    return False


def test_another_engines_decoder_passes_where_it_is_allowed(llama: Path) -> None:
    edit_json(llama / "config.json", architectures=["GPTNeoXForCausalLM"], model_type="gpt_neox")
    with pytest.raises(UnsupportedModel, match=r"vLLM may run it \(docs/vllm\.md\)"):
        open_model_directory(llama)
    directory = open_model_directory(llama, any_decoder=True)
    assert (directory.task, directory.max_model_len) == (Task.GENERATE, 512)
    assert directory.eos_token_ids == (2,)


def test_a_model_that_also_sees_keeps_its_limits_in_its_text_part(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    text = {key: config.pop(key) for key in ("max_position_embeddings", "eos_token_id")}
    text["max_position_embeddings"] = 256
    config.update(
        architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3", text_config=text
    )
    (llama / "config.json").write_text(json.dumps(config))
    (llama / "generation_config.json").unlink()
    directory = open_model_directory(llama, any_decoder=True)
    assert (directory.max_model_len, directory.eos_token_ids) == (256, (2,))


def test_what_is_no_decoder_never_passes(bert: Path) -> None:
    edit_json(bert / "config.json", architectures=["T5EncoderModel"], model_type="t5")
    with pytest.raises(UnsupportedModel) as error:
        open_model_directory(bert, any_decoder=True)
    assert "vLLM" not in error.value.message
    edit_json(bert / "config.json", architectures=["BertForCausalLM"], model_type="bert")
    with pytest.raises(UnsupportedModel):
        open_model_directory(bert, any_decoder=True)
