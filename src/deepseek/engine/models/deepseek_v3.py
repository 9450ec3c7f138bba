"""DeepSeek-V2 and V3: latent attention, dense layers first, then shared and routed experts.

V2: arXiv:2405.04434. V3 (and R1): arXiv:2412.19437; its multi-token prediction is in
`deepseek.engine.models.mtp`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch.nn.functional import embedding

from deepseek.core.errors import UnsupportedModel
from deepseek.engine.batch import KVShape, LayerKV, StepBatch
from deepseek.engine.models.checkpoint import Checkpoint
from deepseek.engine.models.experts import ExpertLayout, MixtureOfExperts, load_experts
from deepseek.engine.models.gating import DeepseekV2Gate, DeepseekV3Gate, Gate
from deepseek.engine.models.latent_attention import LatentAttention, rotary_turns
from deepseek.engine.models.llama import FeedForward, GatedMLP, norm_of_sum
from deepseek.engine.ops.base import Ops


class DeepseekV3Decoder:
    """See `deepseek.engine.models.base.Decoder`."""

    gate: ClassVar[type[DeepseekV2Gate | DeepseekV3Gate]] = DeepseekV3Gate
    options: ClassVar[dict[str, tuple[Any, ...]]] = {
        "hidden_act": ("silu",),
        "moe_layer_freq": (1,),
        "scoring_func": ("sigmoid",),
        "topk_method": ("noaux_tc",),
    }
    """Config keys that change what is computed, and the values that are."""

    def __init__(self, checkpoint: Checkpoint, ops: Ops) -> None:
        config = checkpoint.config
        _require_options(checkpoint, self.options)
        self._ops = ops
        self.vocab_size: int = config.vocab_size
        self.max_positions: int = config.max_position_embeddings
        self.kv_shape = latent_kv_shape(checkpoint, num_layers=config.num_hidden_layers)
        self._eps: float = config.rms_norm_eps
        vocabulary = (config.vocab_size, config.hidden_size)
        self._embedding = checkpoint.tensor("model.embed_tokens.weight", vocabulary)
        self._norm = checkpoint.tensor("model.norm.weight", (config.hidden_size,))
        self._turns = rotary_turns(checkpoint)
        self._layers = [
            DeepseekLayer(checkpoint, ops, index=index, gate=self.gate)
            for index in range(config.num_hidden_layers)
        ]
        tied = self._embedding if config.tie_word_embeddings else None
        self._head = checkpoint.head("lm_head.weight", vocabulary, tied=tied)
        self.projections = tuple(checkpoint.projections)

    def forward(
        self, batch: StepBatch, layers: Sequence[LayerKV], *, rows: torch.Tensor | None
    ) -> torch.Tensor:
        states = self.states(batch, layers)
        return self.logits(states if rows is None else states[rows])

    def states(self, batch: StepBatch, layers: Sequence[LayerKV]) -> torch.Tensor:
        """Run a step; return the normed (rows, hidden) that logits, and drafts, are made from."""
        residual = self.embed(batch.token_ids)
        states: torch.Tensor | None = None
        turns = self.turns(batch)
        for layer, kv in zip(self._layers, layers, strict=True):
            states = layer.forward(states, residual, turns, batch, kv)
        return norm_of_sum(self._ops, states, residual, self._norm, self._eps)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return (rows, vocab_size) for normed (rows, hidden)."""
        logits: torch.Tensor = self._head(states)
        return logits

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return (rows, hidden)."""
        return embedding(token_ids, self._embedding)

    def turns(self, batch: StepBatch) -> torch.Tensor:
        """Return what `LatentAttention` rotates the batch's rows by."""
        return self._turns[batch.positions]


class DeepseekV2Decoder(DeepseekV3Decoder):
    """The same with a softmax gate."""

    gate = DeepseekV2Gate
    options: ClassVar[dict[str, tuple[Any, ...]]] = {
        "hidden_act": ("silu",),
        "moe_layer_freq": (1,),
        "scoring_func": ("softmax",),
        "topk_method": ("greedy", "group_limited_greedy"),
        "norm_topk_prob": (False,),
    }


class DeepseekLayer:
    """Attention, then a dense MLP or experts."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        ops: Ops,
        *,
        index: int,
        gate: type[DeepseekV2Gate | DeepseekV3Gate],
    ) -> None:
        config = checkpoint.config
        prefix, hidden = f"model.layers.{index}", config.hidden_size
        self._ops = ops
        self._eps: float = config.rms_norm_eps
        self._attention = LatentAttention(checkpoint, ops, f"{prefix}.self_attn")
        self._attn_norm = checkpoint.tensor(f"{prefix}.input_layernorm.weight", (hidden,))
        self._mlp_norm = checkpoint.tensor(f"{prefix}.post_attention_layernorm.weight", (hidden,))
        mlp = f"{prefix}.mlp"
        self._feed_forward: FeedForward
        if index < config.first_k_dense_replace:
            self._feed_forward = GatedMLP(checkpoint, ops, mlp, inner=config.intermediate_size)
        else:
            self._feed_forward = _experts(checkpoint, ops, mlp, gate(checkpoint, f"{mlp}.gate"))

    def forward(
        self,
        states: torch.Tensor | None,
        residual: torch.Tensor,
        turns: torch.Tensor,
        batch: StepBatch,
        kv: LayerKV,
    ) -> torch.Tensor | None:
        """Return what the next norm must add to `residual`, which is updated in place.

        None: nothing, as for `states`.
        """
        normed = norm_of_sum(self._ops, states, residual, self._attn_norm, self._eps)
        attended = self._attention.forward(normed, turns, batch, kv)
        normed = self._ops.add_rms_norm(attended, residual, self._mlp_norm, self._eps)
        return self._feed_forward.add_to(residual, normed, batch)


def latent_kv_shape(checkpoint: Checkpoint, *, num_layers: int) -> KVShape:
    """Return the attention state of `num_layers` layers: one latent vector per token."""
    config = checkpoint.config
    return KVShape(
        num_layers=num_layers,
        num_kv_heads=1,
        key_dim=config.kv_lora_rank + config.qk_rope_head_dim,
        value_dim=config.kv_lora_rank,
        dtype=checkpoint.dtype,
        values_in_keys=True,
    )


def _experts(checkpoint: Checkpoint, ops: Ops, prefix: str, gate: Gate) -> MixtureOfExperts:
    config = checkpoint.config
    inner = config.moe_intermediate_size
    layout = ExpertLayout(
        prefix=f"{prefix}.experts", num_experts=config.n_routed_experts, inner=inner
    )
    shared = GatedMLP(
        checkpoint, ops, f"{prefix}.shared_experts", inner=inner * config.n_shared_experts
    )
    return MixtureOfExperts(gate, load_experts(checkpoint, ops, layout), shared)


def _require_options(checkpoint: Checkpoint, options: dict[str, tuple[Any, ...]]) -> None:
    for key, supported in options.items():
        value = getattr(checkpoint.config, key, supported[0])
        if value not in supported:
            known = " or ".join(repr(choice) for choice in supported)
            raise UnsupportedModel(
                f"{checkpoint.path}: {key} {value!r} in config.json is not supported, only {known}"
            )
