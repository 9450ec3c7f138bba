"""What follows the network of an embedding model: dense layers and normalisation.

A classifier's head is part of its network: see the model modules.
"""

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn.functional import normalize

from deepseek.core.errors import CorruptWeights, UnsupportedModel
from deepseek.engine.linear import make_linear
from deepseek.weights.model_directory import (
    DenseModule,
    ModelDirectory,
    Pooling,
    SentencePipeline,
)

_ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": torch.nn.Identity,
    "torch.nn.modules.activation.Tanh": torch.nn.Tanh,
    "torch.nn.modules.activation.ReLU": torch.nn.ReLU,
    "torch.nn.modules.activation.GELU": torch.nn.GELU,
}
_DEFAULT_PIPELINE = SentencePipeline(pooling="mean", normalize=True, dense=())
"""What a plain encoder without sentence-transformers files does: the common choice."""


def has_classifier(directory: ModelDirectory) -> bool:
    """Say whether the network ends in logits instead of states."""
    return directory.architecture.endswith("ForSequenceClassification")


class SentenceHead:
    """Computes in float32, whatever the network runs in: these layers are tiny."""

    def __init__(self, pipeline: SentencePipeline | None, *, hidden: int, device: str) -> None:
        """Load the dense layers; raises `CorruptWeights` or `UnsupportedModel`."""
        pipeline = pipeline or _DEFAULT_PIPELINE
        self.pooling: Pooling = pipeline.pooling
        """How the caller makes one row of a sequence's states."""
        self.width = pipeline.dense[-1].out_features if pipeline.dense else hidden
        self._dense = [_load_dense(module, device) for module in pipeline.dense]
        self._normalize = pipeline.normalize

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (sequences, width) for pooled (sequences, hidden)."""
        rows = rows.float()
        for dense in self._dense:
            rows = dense(rows)
        return normalize(rows, dim=-1) if self._normalize else rows


def _load_dense(module: DenseModule, device: str) -> torch.nn.Module:
    activation = _ACTIVATIONS.get(module.activation)
    if activation is None:
        known = ", ".join(_ACTIVATIONS)
        raise UnsupportedModel(f"{module.path}: activation {module.activation!r}; known: {known}")
    try:
        tensors = load_file(module.path / "model.safetensors", device=device)
    except (OSError, SafetensorError) as error:
        raise CorruptWeights(f"{module.path}: damaged weights ({error})") from error
    weight, bias = tensors["linear.weight"], tensors.get("linear.bias")
    linear = make_linear(weight.float(), None if bias is None else bias.float())
    return torch.nn.Sequential(linear, activation())
