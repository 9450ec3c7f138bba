"""What a Hugging Face model directory holds, read without loading a tensor.

Light on purpose: the platform's process opens every model directory to learn task, limits and
labels, and refuses a broken one before a worker starts. Tensor data is the engine's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek.core.errors import CorruptWeights, ModelSourceError, UnsupportedModel
from deepseek.core.requests import Task
from deepseek.weights.json_files import read_object, read_object_if_present
from deepseek.weights.safetensors_header import read_header
from deepseek.weights.sentence_pipeline import (
    DenseModule,
    Pooling,
    SentencePipeline,
    read_sentence_pipeline,
)
from deepseek.weights.store.checking import require_chunks
from deepseek.weights.store.manifest import MANIFEST_FILE, Manifest, has_manifest, read_manifest

__all__ = [
    "DECODER_ARCHITECTURES",
    "ENCODER_MODEL_TYPES",
    "DenseModule",
    "ModelDirectory",
    "Pooling",
    "SentencePipeline",
    "open_model_directory",
]

DECODER_ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "GPT2LMHeadModel",
    "Qwen3MoeForCausalLM",
    "MixtralForCausalLM",
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
)
"""What the platform's own engine generates with."""
_DECODER_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
ENCODER_MODEL_TYPES = (
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "electra",
    "mpnet",
    "modernbert",
    "deberta-v2",
    "albert",
    "camembert",
)
_OFFSET_MODEL_TYPES = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Families that number positions from `pad_token_id + 1`, so that many rows are never used."""
_CLASSIFIER_SUFFIX = "ForSequenceClassification"
_DEFAULT_MAX_LEN = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDirectory:
    """A directory that `open_model_directory` found complete and supported."""

    path: Path
    config: dict[str, Any]
    architecture: str
    model_type: str
    task: Task
    max_model_len: int
    """Tokens one sequence may have."""
    weight_files: tuple[Path, ...]
    """Empty where the weights are in a chunk store."""
    manifest: Manifest | None
    """What the weights are made of, where they are in a chunk store."""
    labels: tuple[str, ...]
    """A classifier's classes in the order of its logits; empty for other tasks."""
    multi_label: bool
    generation_config: dict[str, Any]
    eos_token_ids: tuple[int, ...]
    sentence: SentencePipeline | None

    @property
    def weights_bytes(self) -> int:
        if self.manifest is not None:
            return self.manifest.stored_bytes
        return sum(file.stat().st_size for file in self.weight_files)

    def validate_weights(self) -> None:
        """Check that weights are complete, without reading them; raises `CorruptWeights`.

        Of a file the header is compared with its length, of chunks that each is in the store.
        """
        if self.manifest is not None:
            require_chunks(self.manifest, self.path)
        for file in self.weight_files:
            read_header(file)


def open_model_directory(path: Path, *, any_decoder: bool = False) -> ModelDirectory:
    """Read and check a model directory.

    `any_decoder` lets pass language models that our own engine does not know: another engine
    decides about them when it loads them.

    Raises `ModelSourceError` (no usable directory), `UnsupportedModel` (an architecture that no
    engine runs) or `CorruptWeights` (damaged or missing weights files).
    """
    config = _read_config(path)
    architecture, model_type = _check_supported(path, config, any_decoder=any_decoder)
    _require_tokenizer(path)
    generation_config = read_object_if_present(path / "generation_config.json")
    is_encoder = model_type in ENCODER_MODEL_TYPES
    sentence = read_sentence_pipeline(path) if is_encoder else None
    task = _task(config, architecture, sentence) if is_encoder else Task.GENERATE
    directory = ModelDirectory(
        path=path,
        config=config,
        architecture=architecture,
        model_type=model_type,
        task=task,
        max_model_len=_max_model_len(path, _text_config(config), model_type),
        weight_files=() if has_manifest(path) else _weight_files(path),
        manifest=read_manifest(path) if has_manifest(path) else None,
        labels=_labels(path, config) if task is Task.CLASSIFY else (),
        multi_label=config.get("problem_type") == "multi_label_classification",
        generation_config=generation_config,
        eos_token_ids=_eos_token_ids(_text_config(config), generation_config),
        sentence=sentence,
    )
    directory.validate_weights()
    _check_head(directory)
    return directory


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ModelSourceError(f"{path} does not exist; give the path of a model directory")
    if not path.is_dir():
        hint = "import it with `deepseek models add NAME --path FILE` and use NAME"
        remedy = hint if path.suffix == ".gguf" else "give the directory that holds config.json"
        raise ModelSourceError(f"{path} is a file, not a model directory; {remedy}")
    file = path / "config.json"
    if not file.exists():
        raise ModelSourceError(
            f"{path} has no config.json; give a directory in Hugging Face format "
            "(config.json, tokenizer.json, model.safetensors)"
        )
    return read_object(file)


def _check_supported(
    path: Path, config: Mapping[str, Any], *, any_decoder: bool
) -> tuple[str, str]:
    listed = config.get("architectures")
    architecture = str(listed[0]) if isinstance(listed, list) and listed else "(none)"
    model_type = str(config.get("model_type", "(none)"))
    is_encoder_class = architecture.endswith(("Model", _CLASSIFIER_SUFFIX, "ForMaskedLM"))
    if architecture in DECODER_ARCHITECTURES:
        return architecture, model_type
    if model_type in ENCODER_MODEL_TYPES and is_encoder_class:
        return architecture, model_type
    is_decoder_class = architecture.endswith(_DECODER_SUFFIXES)
    if any_decoder and is_decoder_class and model_type not in ENCODER_MODEL_TYPES:
        return architecture, model_type
    elsewhere = "; vLLM may run it (docs/vllm.md)" if is_decoder_class else ""
    raise UnsupportedModel(
        f"{path}: architecture {architecture!r} (model type {model_type!r}) is not supported. "
        f"Supported: {', '.join(DECODER_ARCHITECTURES)}; encoders and sequence classifiers of "
        f"the model types {', '.join(ENCODER_MODEL_TYPES)}{elsewhere}"
    )


def _require_tokenizer(path: Path) -> None:
    if not (path / "tokenizer.json").exists():
        raise ModelSourceError(
            f"{path} has no tokenizer.json; write one with transformers: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the language model's part of the config of a model that also sees or hears."""
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def _task(config: Mapping[str, Any], architecture: str, sentence: SentencePipeline | None) -> Task:
    """Return what an encoder does."""
    if architecture.endswith(_CLASSIFIER_SUFFIX):
        return Task.CLASSIFY
    if sentence is not None and sentence.dense and config.get("id2label"):
        return Task.CLASSIFY
    return Task.EMBED


def _max_model_len(path: Path, config: Mapping[str, Any], model_type: str) -> int:
    file = path / "config.json"
    positions = _integer(file, config, "max_position_embeddings")
    limit = positions or _integer(file, config, "n_positions") or _DEFAULT_MAX_LEN
    if model_type in _OFFSET_MODEL_TYPES:
        padding = _integer(file, config, "pad_token_id")
        limit -= (1 if padding is None else padding) + 1
    file = path / "sentence_bert_config.json"
    return min(limit, _integer(file, read_object_if_present(file), "max_seq_length") or limit)


def _integer(file: Path, config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    if value is not None and (not isinstance(value, int) or value < 0):
        raise ModelSourceError(f"{file}: {key} must be a whole number, not {value!r}")
    return value


def _weight_files(path: Path) -> tuple[Path, ...]:
    single = path / "model.safetensors"
    if single.exists():
        return (single,)
    index = path / "model.safetensors.index.json"
    if not index.exists():
        raise ModelSourceError(
            f"{path} has no model.safetensors and no {MANIFEST_FILE}; other formats are not "
            "loaded: write it with transformers, "
            "AutoModel.from_pretrained(DIR).save_pretrained(DIR)"
        )
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptWeights(f"{index} names no weights files; fetch the model again")
    files = tuple(path / str(name) for name in sorted(set(weight_map.values())))
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise CorruptWeights(f"{path}: missing {', '.join(missing)}; fetch the missing files")
    return files


def _labels(path: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    id2label = config.get("id2label")
    if not id2label:
        return ("LABEL_0", "LABEL_1")  # transformers' default, which it does not write
    try:
        ordered = sorted((int(index), str(label)) for index, label in id2label.items())
    except (ValueError, AttributeError) as error:
        raise ModelSourceError(
            f"{path / 'config.json'}: id2label must map class numbers to names"
        ) from error
    return tuple(label for _, label in ordered)


def _eos_token_ids(*configs: Mapping[str, Any]) -> tuple[int, ...]:
    found: list[int] = []
    for config in configs:
        value = config.get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        found.extend(token for token in ids if isinstance(token, int) and token not in found)
    return tuple(found)


def _check_head(directory: ModelDirectory) -> None:
    """Refuse a dense head whose width is not the number of labels."""
    if directory.task is not Task.CLASSIFY or directory.sentence is None:
        return
    dense = directory.sentence.dense
    if dense and dense[-1].out_features != len(directory.labels):
        raise CorruptWeights(
            f"{dense[-1].path}: {dense[-1].out_features} outputs for {len(directory.labels)} "
            "labels in config.json (id2label)"
        )
