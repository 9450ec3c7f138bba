"""GPT-2: learned positions, LayerNorm, GELU, weights stored (in, out)."""

from collections.abc import Sequence

import torch
from torch.nn.functional import embedding, layer_norm

from deepseek.engine.batch import KVShape, LayerKV, StepBatch
from deepseek.engine.models.activations import activation
from deepseek.engine.models.checkpoint import Checkpoint
from deepseek.engine.ops.base import Ops


class GPT2Decoder:
    """Pre-norm decoder with learned positions."""

    def __init__(self, checkpoint: Checkpoint, ops: Ops) -> None:
        """Read every tensor; checkpoints of the bare model have no `transformer.` prefix."""
        config = checkpoint.config
        self.vocab_size: int = config.vocab_size
        self.max_positions: int = config.n_positions
        width = config.n_embd
        self.kv_shape = KVShape(
            num_layers=config.n_layer,
            num_kv_heads=config.n_head,
            key_dim=width // config.n_head,
            value_dim=width // config.n_head,
            dtype=checkpoint.dtype,
        )
        self._eps: float = config.layer_norm_epsilon
        prefix = "transformer." if checkpoint.has("transformer.wte.weight") else ""
        vocabulary = (config.vocab_size, width)
        self._tokens = checkpoint.tensor(f"{prefix}wte.weight", vocabulary)
        self._positions = checkpoint.tensor(f"{prefix}wpe.weight", (config.n_positions, width))
        self._norm = _Norm(checkpoint, f"{prefix}ln_f", self._eps)
        self._layers = [_Layer(checkpoint, ops, f"{prefix}h.{i}") for i in range(config.n_layer)]
        untied = checkpoint.has("lm_head.weight") and not config.tie_word_embeddings
        self._head = checkpoint.head(
            "lm_head.weight", vocabulary, tied=None if untied else self._tokens
        )
        self.projections = tuple(checkpoint.projections)

    def forward(
        self, batch: StepBatch, layers: Sequence[LayerKV], *, rows: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the logits of the due rows."""
        states = embedding(batch.token_ids, self._tokens)
        states = states + embedding(batch.positions, self._positions)
        for layer, kv in zip(self._layers, layers, strict=True):
            states = layer.forward(states, batch, kv)
        if rows is not None:
            states = states[rows]
        logits: torch.Tensor = self._head(self._norm(states))
        return logits


class _Layer:
    def __init__(self, checkpoint: Checkpoint, ops: Ops, prefix: str) -> None:
        config = checkpoint.config
        self._ops = ops
        self._num_heads: int = config.n_head
        width = config.n_embd
        inner = config.n_inner or 4 * width
        self._attn_norm = _Norm(checkpoint, f"{prefix}.ln_1", config.layer_norm_epsilon)
        self._mlp_norm = _Norm(checkpoint, f"{prefix}.ln_2", config.layer_norm_epsilon)
        self._qkv = checkpoint.linear(
            f"{prefix}.attn.c_attn", in_features=width, out_features=(3 * width,), transposed=True
        )
        self._out = checkpoint.linear(
            f"{prefix}.attn.c_proj", in_features=width, out_features=(width,), transposed=True
        )
        self._up = checkpoint.linear(
            f"{prefix}.mlp.c_fc", in_features=width, out_features=(inner,), transposed=True
        )
        self._down = checkpoint.linear(
            f"{prefix}.mlp.c_proj", in_features=inner, out_features=(width,), transposed=True
        )
        self._act = activation(config.activation_function, path=checkpoint.path)

    def forward(self, states: torch.Tensor, batch: StepBatch, kv: LayerKV) -> torch.Tensor:
        choices = batch.choices
        qkv = self._qkv(self._attn_norm(states), choices)
        queries, keys, values = qkv.view(len(qkv), 3, self._num_heads, -1).unbind(1)
        self._ops.store(keys, values, batch, kv)
        attended = self._ops.attend(
            queries.contiguous(), batch, kv, scale=queries.shape[-1] ** -0.5
        )
        states = states + self._out(attended, choices)
        inner = self._act(self._up(self._mlp_norm(states), choices))
        down: torch.Tensor = self._down(inner, choices)
        return states + down


class _Norm:
    def __init__(self, checkpoint: Checkpoint, prefix: str, eps: float) -> None:
        self._weight = checkpoint.tensor(f"{prefix}.weight")
        self._bias = checkpoint.tensor(f"{prefix}.bias")
        self._eps = eps

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return layer_norm(states, self._weight.shape, self._weight, self._bias, self._eps)
