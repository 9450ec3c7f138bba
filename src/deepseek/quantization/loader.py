"""`load_model`: a transformers model from a directory or a catalogue name, to be quantized."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from deepseek.core.errors import UnsupportedModel
from deepseek.core.requests import Task
from deepseek.quantization.quantizable import make_quantizable
from deepseek.weights.acquisition import resolve_source
from deepseek.weights.cache import ModelCache
from deepseek.weights.model_directory import ModelDirectory, open_model_directory
from deepseek.weights.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(
    source: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> "PreTrainedModel":
    """Return a causal language model, a sequence classifier or an encoder, as its config says.

    `source` is a model directory or a name of the catalogue, which is fetched where it is absent.
    Weights keep the type that they are saved in unless `dtype` names another. Raises
    `ModelSourceError`, `UnsupportedModel`, `CorruptWeights`, and what a download may raise.
    """
    path = resolve_source(
        str(source),
        base_dir=Path.cwd(),
        cache=ModelCache.default(),
        progress=progress or SilentProgress(),
    )
    directory = open_model_directory(path, any_decoder=True)
    auto_class = _auto_class(directory)
    model = auto_class.from_pretrained(path, local_files_only=True, dtype=dtype or "auto")
    return make_quantizable(model.to(device).eval())


def _auto_class(directory: ModelDirectory) -> Any:
    if directory.manifest is not None:
        raise UnsupportedModel(
            f"{directory.path} has its weights in the chunk store, which transformers cannot read; "
            "load the directory that it was imported from",
            param="source",
        )
    if directory.task is Task.GENERATE:
        return AutoModelForCausalLM
    if directory.architecture.endswith("ForSequenceClassification"):
        return AutoModelForSequenceClassification
    if directory.task is Task.CLASSIFY:
        raise UnsupportedModel(
            f"{directory.path} keeps its classifier in a module of sentence-transformers, which "
            "transformers' classifiers do not have; load the encoder that it was trained on",
            param="source",
        )
    return AutoModel
