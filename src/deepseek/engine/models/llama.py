"""The Llama family: Llama, Mistral, Qwen2 (biases on q, k, v) and Qwen3 (norms on q and k).

Llama: arXiv:2302.13971. The feed-forward part is a class of its own, so that mixture-of-experts
families reuse the rest.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch.nn.functional import embedding

from deepseek.core.errors import UnsupportedModel
from deepseek.engine.batch import KVShape, LayerKV, StepBatch
from deepseek.engine.models.checkpoint import Checkpoint
from deepseek.engine.models.rotary import rotary_table
from deepseek.engine.ops.base import Ops


class FeedForward(Protocol):
    """The part of a layer that works on each row alone."""

    def forward(self, states: torch.Tensor, batch: StepBatch) -> torch.Tensor:
        """Return (rows, hidden) for normed (rows, hidden)."""
        ...

    def add_to(
        self, residual: torch.Tensor, states: torch.Tensor, batch: StepBatch
    ) -> torch.Tensor | None:
        """Add the same to `residual` in place, or return it where that is as fast."""
        ...


class LlamaDecoder:
    """Pre-norm decoder with rotary positions and a gated SiLU MLP."""

    def __init__(self, checkpoint: Checkpoint, ops: Ops) -> None:
        """Read every tensor; q, k, v and gate, up are fused into one matrix each."""
        config = checkpoint.config
        if config.hidden_act != "silu":
            raise UnsupportedModel(f"{checkpoint.path}: activation {config.hidden_act!r}")
        self._ops = ops
        head_dim = config.head_dim
        self.vocab_size: int = config.vocab_size
        self.max_positions = _max_positions(checkpoint)
        self.kv_shape = KVShape(
            num_layers=config.num_hidden_layers,
            num_kv_heads=config.num_key_value_heads,
            key_dim=head_dim,
            value_dim=head_dim,
            dtype=checkpoint.dtype,
        )
        self._eps: float = config.rms_norm_eps
        vocabulary = (config.vocab_size, config.hidden_size)
        self._embedding = checkpoint.tensor("model.embed_tokens.weight", vocabulary)
        self._norm = checkpoint.tensor("model.norm.weight", (config.hidden_size,))
        rotary = rotary_table(
            config.rope, dim=head_dim, max_positions=self.max_positions, device=checkpoint.device
        )
        self._layers = [
            _Layer(
                checkpoint,
                ops,
                rotary,
                index=index,
                feed_forward=self._feed_forward(checkpoint, ops, index),
            )
            for index in range(config.num_hidden_layers)
        ]
        tied = config.tie_word_embeddings or not checkpoint.has("lm_head.weight")
        self._head = checkpoint.head(
            "lm_head.weight", vocabulary, tied=self._embedding if tied else None
        )
        self.projections = tuple(checkpoint.projections)

    def _feed_forward(self, checkpoint: Checkpoint, ops: Ops, index: int) -> FeedForward:
        """Return layer `index`'s feed-forward part; families with experts override it."""
        config = checkpoint.config
        return GatedMLP(
            checkpoint, ops, f"model.layers.{index}.mlp", inner=config.intermediate_size
        )

    def forward(
        self, batch: StepBatch, layers: Sequence[LayerKV], *, rows: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the logits of the due rows."""
        residual = embedding(batch.token_ids, self._embedding)
        states: torch.Tensor | None = None
        for layer, kv in zip(self._layers[:-1], layers[:-1], strict=True):
            states = layer.forward(states, residual, batch, kv)
        queries = self._layers[-1].store(states, residual, batch, layers[-1])
        if rows is not None:
            # The last layer's keys and values are all that the other rows are needed for.
            queries, residual, batch = queries[rows], residual[rows], batch.of_rows(rows)
        states = self._layers[-1].attend(queries, residual, batch, layers[-1])
        normed = norm_of_sum(self._ops, states, residual, self._norm, self._eps)
        logits: torch.Tensor = self._head(normed)
        return logits


class GatedMLP:
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, checkpoint: Checkpoint, ops: Ops, prefix: str, *, inner: int) -> None:
        hidden = checkpoint.config.hidden_size
        self._ops = ops
        self._gate_up = checkpoint.linear(
            f"{prefix}.gate_proj",
            f"{prefix}.up_proj",
            in_features=hidden,
            out_features=(inner, inner),
        )
        self._down = checkpoint.linear(
            f"{prefix}.down_proj", in_features=inner, out_features=(hidden,)
        )

    def forward(self, states: torch.Tensor, batch: StepBatch) -> torch.Tensor:
        down: torch.Tensor = self._down(self._gated(states, batch), batch.choices)
        return down

    def add_to(
        self, residual: torch.Tensor, states: torch.Tensor, batch: StepBatch
    ) -> torch.Tensor | None:
        return self._down.add_to(residual, self._gated(states, batch), batch.choices)

    def _gated(self, states: torch.Tensor, batch: StepBatch) -> torch.Tensor:
        return self._gate_up.gated_silu(states, batch.choices, self._ops)


class _Layer:
    def __init__(
        self,
        checkpoint: Checkpoint,
        ops: Ops,
        rotary: torch.Tensor,
        *,
        index: int,
        feed_forward: FeedForward,
    ) -> None:
        config = checkpoint.config
        hidden = config.hidden_size
        self._ops = ops
        self._rotary = rotary
        self._feed_forward = feed_forward
        self._eps: float = config.rms_norm_eps
        self._num_heads: int = config.num_attention_heads
        num_kv_heads = config.num_key_value_heads
        dim = rotary.shape[1]
        self._scale = dim**-0.5
        query, keys = self._num_heads * dim, num_kv_heads * dim
        prefix = f"model.layers.{index}"
        attn = f"{prefix}.self_attn"
        self._qkv = checkpoint.linear(
            *(f"{attn}.{part}_proj" for part in "qkv"),
            in_features=hidden,
            out_features=(query, keys, keys),
        )
        self._out = checkpoint.linear(f"{attn}.o_proj", in_features=query, out_features=(hidden,))
        self._attn_norm = checkpoint.tensor(f"{prefix}.input_layernorm.weight", (hidden,))
        self._mlp_norm = checkpoint.tensor(f"{prefix}.post_attention_layernorm.weight", (hidden,))
        self._head_norms = None
        if checkpoint.has(f"{attn}.q_norm.weight"):  # Qwen3
            self._head_norms = (
                checkpoint.tensor(f"{attn}.q_norm.weight", (dim,)),
                checkpoint.tensor(f"{attn}.k_norm.weight", (dim,)),
            )

    def forward(
        self, states: torch.Tensor | None, residual: torch.Tensor, batch: StepBatch, kv: LayerKV
    ) -> torch.Tensor | None:
        """Return what the next norm must add to `residual`, which is updated in place.

        None: nothing, as for `states`.
        """
        return self.attend(self.store(states, residual, batch, kv), residual, batch, kv)

    def store(
        self, states: torch.Tensor | None, residual: torch.Tensor, batch: StepBatch, kv: LayerKV
    ) -> torch.Tensor:
        """Update `residual`, store the rows' keys and values, return their queries."""
        normed = norm_of_sum(self._ops, states, residual, self._attn_norm, self._eps)
        return self._ops.rotate_and_store(
            self._qkv(normed, batch.choices),
            self._rotary,
            batch,
            kv,
            num_heads=self._num_heads,
            head_norms=self._head_norms,
            eps=self._eps,
        )

    def attend(
        self, queries: torch.Tensor, residual: torch.Tensor, batch: StepBatch, kv: LayerKV
    ) -> torch.Tensor | None:
        """Return what the next norm must add to `residual`, after attention and the MLP."""
        attended = self._ops.attend(queries, batch, kv, scale=self._scale)
        states = self._out.add_to(residual, attended, batch.choices)
        normed = norm_of_sum(self._ops, states, residual, self._mlp_norm, self._eps)
        return self._feed_forward.add_to(residual, normed, batch)


def norm_of_sum(
    ops: Ops, states: torch.Tensor | None, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Add to `residual` what has not been added yet, if anything; return the norm of the sum."""
    if states is None:
        return ops.rms_norm(residual, weight, eps)
    return ops.add_rms_norm(states, residual, weight, eps)


def _max_positions(checkpoint: Checkpoint) -> int:
    config = checkpoint.config
    positions: int = config.max_position_embeddings
    if config.attention_window:
        # Inside the window full attention is the same computation; beyond it, it is not.
        return min(positions, config.attention_window)
    return positions
