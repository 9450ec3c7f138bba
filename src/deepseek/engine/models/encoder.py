"""Encoders of the BERT families: transformers' model code, our linear layers and pooling."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModel, AutoModelForSequenceClassification

from deepseek.core.errors import CorruptWeights, UnsupportedModel
from deepseek.core.requests import Task
from deepseek.engine.linear import make_linear, pack_linears
from deepseek.weights.model_directory import DenseModule, ModelDirectory, SentencePipeline

_ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": torch.nn.Identity,
    "torch.nn.modules.activation.Tanh": torch.nn.Tanh,
    "torch.nn.modules.activation.ReLU": torch.nn.ReLU,
    "torch.nn.modules.activation.GELU": torch.nn.GELU,
}
_DEFAULT_PIPELINE = SentencePipeline(pooling="mean", normalize=True, dense=())
"""What a plain encoder without sentence-transformers files does: the common choice."""


class Encoder:
    """Token ids in, one float32 row per sequence out."""

    def __init__(self, directory: ModelDirectory, *, dtype: torch.dtype, device: str) -> None:
        """Load the directory; raises `CorruptWeights` or `UnsupportedModel`."""
        self._device = device
        self._is_head_inside = directory.architecture.endswith("ForSequenceClassification")
        loader: Any = AutoModelForSequenceClassification if self._is_head_inside else AutoModel
        try:
            self._model, report = loader.from_pretrained(
                directory.path,
                local_files_only=True,
                dtype=dtype,
                attn_implementation="sdpa",
                use_safetensors=True,
                output_loading_info=True,
            )
        except SafetensorError as error:
            raise CorruptWeights(f"{directory.path}: damaged weights ({error})") from error
        except (ValueError, RuntimeError) as error:
            raise UnsupportedModel(f"{directory.path}: cannot be loaded: {error}") from error
        missing = [key for key in report["missing_keys"] if "pooler" not in key]
        if missing:
            raise CorruptWeights(f"{directory.path}: tensors are missing: {', '.join(missing[:5])}")
        self._model = self._model.to(device).eval()
        pack_linears(self._model)
        self.vocab_size: int = self._model.config.vocab_size
        self._takes_types = getattr(self._model.config, "type_vocab_size", 0) > 1
        pipeline = directory.sentence
        self._pipeline = _DEFAULT_PIPELINE if pipeline is None else pipeline
        self._dense = [_load_dense(module, dtype, device) for module in self._pipeline.dense]
        self.width = self._width(directory)

    @torch.inference_mode()
    def encode(
        self, sequences: list[list[int]], *, token_type_ids: list[list[int]] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return (sequences, width): logits of a classifier, else pooled vectors."""
        inputs: dict[str, torch.Tensor | None] = {"input_ids": _pad(sequences, self._device)}
        longest = max(map(len, sequences))
        mask = None
        if any(len(sequence) != longest for sequence in sequences):
            mask = _pad([[1] * len(sequence) for sequence in sequences], self._device)
            inputs["attention_mask"] = mask
        if token_type_ids is not None and self._takes_types:
            padded = [types or [0] * longest for types in token_type_ids]
            inputs["token_type_ids"] = _pad(padded, self._device, width=longest)
        output = self._model(**inputs)
        if self._is_head_inside:
            return np.asarray(output.logits.float().cpu().numpy())
        rows = _pool(output.last_hidden_state.float(), mask, self._pipeline.pooling)
        for dense in self._dense:
            rows = dense(rows)
        if self._pipeline.normalize:
            rows = functional.normalize(rows, dim=-1)
        return np.asarray(rows.float().cpu().numpy())

    def _width(self, directory: ModelDirectory) -> int:
        if directory.task is Task.CLASSIFY:
            return len(directory.labels)
        return int(self.encode([[0, 0]]).shape[1])


def _load_dense(module: DenseModule, dtype: torch.dtype, device: str) -> torch.nn.Module:
    activation = _ACTIVATIONS.get(module.activation)
    if activation is None:
        known = ", ".join(_ACTIVATIONS)
        raise UnsupportedModel(f"{module.path}: activation {module.activation!r}; known: {known}")
    try:
        tensors = load_file(module.path / "model.safetensors", device=device)
    except (OSError, SafetensorError) as error:
        raise CorruptWeights(f"{module.path}: damaged weights ({error})") from error
    weight, bias = tensors["linear.weight"], tensors.get("linear.bias")
    # Pooled rows are float32 whatever the encoder runs in: this layer is tiny.
    linear = make_linear(weight.float(), None if bias is None else bias.float())
    return torch.nn.Sequential(linear, activation())


def _pad(rows: list[list[int]], device: str, *, width: int | None = None) -> torch.Tensor:
    width = width or max(map(len, rows))
    table = np.zeros((len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return torch.from_numpy(table).to(device)


def _pool(hidden: torch.Tensor, mask: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """Reduce (sequences, tokens, width) to (sequences, width)."""
    if pooling == "cls":
        return hidden[:, 0]
    if mask is None:
        return hidden.mean(dim=1) if pooling == "mean" else hidden.amax(dim=1)
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    if pooling == "mean":
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    return hidden.masked_fill(weights == 0, float("-inf")).amax(dim=1)
