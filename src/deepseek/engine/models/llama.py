"""The Llama family: Llama, Mistral, Qwen2 (biases on q, k, v) and Qwen3 (norms on q and k).

Llama: arXiv:2302.13971; rotary embeddings: arXiv:2104.09864; RMSNorm: arXiv:1910.07467.
"""

from typing import Any

import torch
from torch.nn.functional import embedding, rms_norm, silu
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from deepseek.core.errors import UnsupportedModel
from deepseek.engine.attention import AttentionPlan
from deepseek.engine.kv_cache import KVShape
from deepseek.engine.linear import make_linear
from deepseek.engine.models.checkpoint import Checkpoint


class LlamaDecoder:
    """Pre-norm decoder with rotary positions and a gated SiLU MLP."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Read every tensor; q, k, v and gate, up are fused into one matrix each."""
        config = checkpoint.config
        if getattr(config, "hidden_act", "silu") != "silu":
            raise UnsupportedModel(f"{checkpoint.path}: activation {config.hidden_act!r}")
        self.num_heads: int = config.num_attention_heads
        num_kv_heads = getattr(config, "num_key_value_heads", None) or self.num_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.num_heads
        self.vocab_size: int = config.vocab_size
        self.max_positions: int = config.max_position_embeddings
        window = getattr(config, "sliding_window", None)
        if window and getattr(config, "use_sliding_window", True):
            # Inside the window full attention is the same computation; beyond it, it is not.
            self.max_positions = min(self.max_positions, window)
        self.kv_shape = KVShape(
            num_layers=config.num_hidden_layers,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            dtype=checkpoint.dtype,
        )
        self._eps: float = config.rms_norm_eps
        self._embedding = checkpoint.tensor(
            "model.embed_tokens.weight", (config.vocab_size, config.hidden_size)
        )
        self._norm = checkpoint.tensor("model.norm.weight", (config.hidden_size,))
        self._layers = [
            _Layer(checkpoint, index, self.kv_shape, num_heads=self.num_heads)
            for index in range(config.num_hidden_layers)
        ]
        tied = config.tie_word_embeddings or not checkpoint.has("lm_head.weight")
        head = self._embedding if tied else checkpoint.tensor("lm_head.weight")
        self._head = make_linear(head)
        self._cos, self._sin = _rotary_tables(config, checkpoint, self.max_positions)

    def hidden(
        self, token_ids: torch.Tensor, positions: torch.Tensor, plan: AttentionPlan
    ) -> torch.Tensor:
        """Return (rows, hidden) before the final norm."""
        cos = self._cos[positions].unsqueeze(1)
        sin = self._sin[positions].unsqueeze(1)
        states = embedding(token_ids, self._embedding)
        for index, layer in enumerate(self._layers):
            states = layer.forward(index, states, (cos, sin), plan)
        return states

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return (rows, vocab_size) in float32."""
        normed = rms_norm(hidden, (hidden.shape[-1],), self._norm, self._eps)
        return self._head(normed).float()


class _Layer:
    def __init__(
        self, checkpoint: Checkpoint, index: int, shape: KVShape, *, num_heads: int
    ) -> None:
        config = checkpoint.config
        hidden, inner = config.hidden_size, config.intermediate_size
        self._eps: float = config.rms_norm_eps
        self._dim = shape.head_dim
        self._num_heads = num_heads
        self._num_rotated = num_heads + shape.num_kv_heads
        query, keys = num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        prefix = f"model.layers.{index}"
        attn, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        names = [f"{attn}.{part}_proj" for part in "qkv"]
        self._qkv = checkpoint.linear(*names, in_features=hidden, out_features=(query, keys, keys))
        self._out = checkpoint.linear(f"{attn}.o_proj", in_features=query, out_features=(hidden,))
        self._gate_up = checkpoint.linear(
            f"{mlp}.gate_proj", f"{mlp}.up_proj", in_features=hidden, out_features=(inner, inner)
        )
        self._down = checkpoint.linear(
            f"{mlp}.down_proj", in_features=inner, out_features=(hidden,)
        )
        self._attn_norm = checkpoint.tensor(f"{prefix}.input_layernorm.weight", (hidden,))
        self._mlp_norm = checkpoint.tensor(f"{prefix}.post_attention_layernorm.weight", (hidden,))
        self._head_norm = self._qk_norm(checkpoint, attn, shape)

    def _qk_norm(self, checkpoint: Checkpoint, attn: str, shape: KVShape) -> torch.Tensor | None:
        """Return the norm weights of every rotated head, (heads, head_dim): Qwen3 has them."""
        if not checkpoint.has(f"{attn}.q_norm.weight"):
            return None
        query = checkpoint.tensor(f"{attn}.q_norm.weight", (self._dim,))
        keys = checkpoint.tensor(f"{attn}.k_norm.weight", (self._dim,))
        return torch.cat([query.expand(self._num_heads, -1), keys.expand(shape.num_kv_heads, -1)])

    def forward(
        self,
        index: int,
        states: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        plan: AttentionPlan,
    ) -> torch.Tensor:
        normed = rms_norm(states, (states.shape[-1],), self._attn_norm, self._eps)
        qkv = self._qkv(normed)
        split = self._num_rotated * self._dim
        heads = qkv[:, :split].view(-1, self._num_rotated, self._dim)
        if self._head_norm is not None:
            heads = rms_norm(heads, (self._dim,), None, self._eps) * self._head_norm
        heads = _rotate(heads, *rotary).view(-1, split)
        query = self._num_heads * self._dim
        attended = plan.attend(
            index, heads[:, :query], torch.cat((heads[:, query:], qkv[:, split:]), dim=1)
        )
        states = states + self._out(attended)
        normed = rms_norm(states, (states.shape[-1],), self._mlp_norm, self._eps)
        gate, up = self._gate_up(normed).chunk(2, dim=-1)
        down: torch.Tensor = self._down(silu(gate) * up)
        return states + down


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate (rows, heads, head_dim) by (rows, 1, head_dim) tables, halves convention."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin


def _rotary_tables(
    config: Any, checkpoint: Checkpoint, max_positions: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin of (positions, head_dim), scaled as the config's rope type says."""
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind == "default":
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
        inv_freq, scale = 1.0 / rope.get("rope_theta", 10000.0) ** exponents, 1.0
    elif kind in ROPE_INIT_FUNCTIONS and kind not in ("dynamic", "longrope"):
        inv_freq, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    else:
        raise UnsupportedModel(f"{checkpoint.path}: rope type {kind!r} is not supported")
    angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), inv_freq)
    angles = torch.cat((angles, angles), dim=-1)
    where = {"device": checkpoint.device, "dtype": checkpoint.dtype}
    return (angles.cos() * scale).to(**where), (angles.sin() * scale).to(**where)
