"""BERT and its relatives over packed rows: all tokens of a batch one after another, no padding.

BERT (arXiv:1810.04805), RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT, ELECTRA and ALBERT are one
network under different tensor names: summed embeddings, post-norm layers, full attention inside
each sequence. Every part but attention works on rows alone.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import embedding, layer_norm

from deepseek.core.errors import UnsupportedModel
from deepseek.engine.models.activations import Activation, activation
from deepseek.engine.models.checkpoint import Checkpoint
from deepseek.engine.ops.base import Ops
from deepseek.weights.model_directory import Pooling


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTokens:
    """The rows of one batch."""

    token_ids: torch.Tensor
    """(rows,) int64"""
    places: torch.Tensor
    """(rows,) int64: what `PackedBert.places` says of each row."""
    starts: torch.Tensor
    """(sequences + 1,) int32: first row of each sequence, then the number of rows."""
    max_len: int
    """Rows of the longest sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """The tensor names of a family, and what else sets it apart."""

    prefix: str
    """Before the names of the base model where a checkpoint holds a head as well."""
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    out: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    output_norm: str = "output.LayerNorm"
    projection: str = "embeddings_project"
    """The layer from the embeddings' width to the network's, where there is one."""
    head: tuple[str, str, str] = ("classifier.dense", "tanh", "classifier.out_proj")
    """A classifier's first layer, its activation, its second layer."""
    numbers_from_padding: bool = False
    """Positions count from `pad_token_id + 1`, and padding tokens do not count."""


_BERT = _Layout(prefix="bert.", head=("bert.pooler.dense", "tanh", "classifier"))
_ROBERTA = _Layout(prefix="roberta.", numbers_from_padding=True)
_LAYOUTS = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": _Layout(prefix="electra.", head=("classifier.dense", "gelu", "classifier.out_proj")),
    "distilbert": _Layout(
        prefix="distilbert.",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        out="attention.out_lin",
        attention_norm="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        output_norm="output_layer_norm",
        head=("pre_classifier", "relu", "classifier"),
    ),
    "albert": _Layout(
        prefix="albert.",
        query="attention.query",
        key="attention.key",
        value="attention.value",
        out="attention.dense",
        attention_norm="attention.LayerNorm",
        up="ffn",
        down="ffn_output",
        output_norm="full_layer_layer_norm",
        projection="encoder.embedding_hidden_mapping_in",
        head=("albert.pooler", "tanh", "classifier"),
    ),
}
MODEL_TYPES = frozenset(_LAYOUTS)
"""What `PackedBert` runs; a config with `is_decoder` (causal attention) excepted."""
_gelu_tanh = partial(torch.ops.aten.gelu_, approximate="tanh")
_IN_PLACE: dict[str, Activation] = {
    "gelu": torch.ops.aten.gelu_,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": torch.relu_,
}
"""Activations that need no second tensor of the widest kind."""


class PackedBert:
    """The network without a head."""

    def __init__(self, checkpoint: Checkpoint, ops: Ops) -> None:
        """Read every tensor.

        Raises `UnsupportedModel` for a variant that this class would compute wrongly and
        `CorruptWeights` where the weights contradict the config.
        """
        config = checkpoint.config
        kind = config.position_embedding_type or "absolute"
        if kind != "absolute":
            raise UnsupportedModel(f"{checkpoint.path}: {kind!r} position embeddings")
        layout = _LAYOUTS[config.model_type]
        words = "embeddings.word_embeddings.weight"
        prefix = layout.prefix if checkpoint.has(layout.prefix + words) else ""
        width = config.embedding_size
        self.vocab_size: int = config.vocab_size
        self.hidden_size: int = config.hidden_size
        self._padding_id: int | None = config.pad_token_id if layout.numbers_from_padding else None
        self._num_positions: int = config.max_position_embeddings
        self._words = checkpoint.tensor(prefix + words, (config.vocab_size, width))
        self._places, self.num_types = _places(checkpoint, f"{prefix}embeddings", width)
        self._norm = _Norm(checkpoint, f"{prefix}embeddings.LayerNorm", width)
        self._projection = None
        if checkpoint.has(f"{prefix}{layout.projection}.weight"):
            self._projection = checkpoint.linear(
                prefix + layout.projection, in_features=width, out_features=(self.hidden_size,)
            )
        paths = _layer_paths(config)
        shared = {path: _Layer(checkpoint, ops, layout, prefix + path) for path in set(paths)}
        self._layers = [shared[path] for path in paths]

    def places(
        self,
        token_ids: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        type_ids: npt.NDArray[np.int64] | None,
    ) -> npt.NDArray[np.int64]:
        """Return each row's place: its position and its type in one number."""
        firsts = np.cumsum(lengths) - lengths
        if self._padding_id is None:
            places = np.arange(len(token_ids)) - np.repeat(firsts, lengths)
        else:
            counts = token_ids != self._padding_id
            counted = np.cumsum(counts)
            before = counted[firsts] - counts[firsts]
            places = (counted - np.repeat(before, lengths)) * counts + self._padding_id
        return places if type_ids is None else places + type_ids * self._num_positions

    def forward(self, batch: PackedTokens, *, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return the last layer's states, (rows, hidden_size); `rows`: only of these."""
        states = embedding(batch.token_ids, self._words)
        states += embedding(batch.places, self._places)
        states = self._norm(states)
        if self._projection is not None:
            states = self._projection(states)
        for layer in self._layers[:-1]:
            states = layer.forward(states, batch)
        return self._layers[-1].forward(states, batch, rows=rows)


class ClassifierHead:
    """Logits from the state of each sequence's first row."""

    pooling: Pooling = "cls"

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = checkpoint.config
        self.width: int = config.num_labels
        first, between, second = _LAYOUTS[config.model_type].head
        width = config.hidden_size
        self._first = checkpoint.linear(first, in_features=width, out_features=(width,))
        self._activation = activation(between, path=checkpoint.path)
        self._second = checkpoint.linear(second, in_features=width, out_features=(self.width,))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return (sequences, labels) for (sequences, hidden_size)."""
        logits: torch.Tensor = self._second(self._activation(self._first(states)))
        return logits


class _Layer:
    def __init__(self, checkpoint: Checkpoint, ops: Ops, layout: _Layout, path: str) -> None:
        config = checkpoint.config
        hidden = config.hidden_size
        inner = config.intermediate_size
        self._ops = ops
        self._num_heads: int = config.num_attention_heads
        self._qkv = checkpoint.linear(
            *(f"{path}.{name}" for name in (layout.query, layout.key, layout.value)),
            in_features=hidden,
            out_features=(hidden, hidden, hidden),
        )
        self._out = checkpoint.linear(
            f"{path}.{layout.out}", in_features=hidden, out_features=(hidden,)
        )
        self._up = checkpoint.linear(
            f"{path}.{layout.up}", in_features=hidden, out_features=(inner,)
        )
        self._down = checkpoint.linear(
            f"{path}.{layout.down}", in_features=inner, out_features=(hidden,)
        )
        self._attention_norm = _Norm(checkpoint, f"{path}.{layout.attention_norm}", hidden)
        self._output_norm = _Norm(checkpoint, f"{path}.{layout.output_norm}", hidden)
        self._activation = _activation(checkpoint)

    def forward(
        self, states: torch.Tensor, batch: PackedTokens, *, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the states after this layer; `rows`: only of these, others are not computed."""
        attended = self._ops.attend_packed(
            self._qkv(states), batch.starts, batch.max_len, num_heads=self._num_heads
        )
        if rows is not None:
            attended, states = attended[rows], states[rows]
        # In place: a sum that oneDNN appends to the product took longer than the two apart.
        states = self._attention_norm(self._out(attended).add_(states))
        inner = self._activation(self._up(states))
        return self._output_norm(self._down(inner).add_(states))


class _Norm:
    def __init__(self, checkpoint: Checkpoint, name: str, width: int) -> None:
        # Checkpoints converted from TensorFlow say gamma and beta.
        weight, bias = "weight", "bias"
        if checkpoint.has(f"{name}.gamma"):
            weight, bias = "gamma", "beta"
        self._weight = checkpoint.tensor(f"{name}.{weight}", (width,))
        self._bias = checkpoint.tensor(f"{name}.{bias}", (width,))
        self._eps: float = checkpoint.config.layer_norm_eps

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return layer_norm(states, self._weight.shape, self._weight, self._bias, self._eps)


def _places(checkpoint: Checkpoint, path: str, width: int) -> tuple[torch.Tensor, int]:
    """Return what is added to a word's embedding, and the number of types.

    Positions and types are few, so that every pair has its row: (types * positions, width).
    """
    num_positions = checkpoint.config.max_position_embeddings
    positions = checkpoint.tensor(f"{path}.position_embeddings.weight", (num_positions, width))
    num_types = checkpoint.config.type_vocab_size
    if not num_types:
        return positions, 1
    types = checkpoint.tensor(f"{path}.token_type_embeddings.weight", (num_types, width))
    return (types[:, None] + positions).flatten(0, 1), num_types


def _layer_paths(config: Any) -> list[str]:
    """Return where each layer's tensors are; ALBERT's layers share them."""
    count = config.num_hidden_layers
    if config.model_type == "distilbert":
        return [f"transformer.layer.{index}" for index in range(count)]
    if config.model_type != "albert":
        return [f"encoder.layer.{index}" for index in range(count)]
    return [
        f"encoder.albert_layer_groups.{index * config.num_hidden_groups // count}"
        f".albert_layers.{inner}"
        for index in range(count)
        for inner in range(config.inner_group_num)
    ]


def _activation(checkpoint: Checkpoint) -> Activation:
    """Return the feed-forward part's activation; it may overwrite its argument."""
    name = checkpoint.config.hidden_act
    return _IN_PLACE.get(name) or activation(name, path=checkpoint.path)
