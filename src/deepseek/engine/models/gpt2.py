"""GPT-2: learned positions, LayerNorm, GELU, weights stored (in, out)."""

import torch
from torch.nn.functional import embedding, layer_norm
from transformers.activations import ACT2FN

from deepseek.engine.attention import AttentionPlan
from deepseek.engine.kv_cache import KVShape
from deepseek.engine.linear import make_linear
from deepseek.engine.models.checkpoint import Checkpoint


class GPT2Decoder:
    """Pre-norm decoder with learned positions."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Read every tensor; checkpoints of the bare model have no `transformer.` prefix."""
        config = checkpoint.config
        self.num_heads: int = config.n_head
        self.vocab_size: int = config.vocab_size
        self.max_positions: int = config.n_positions
        width = config.n_embd
        self.kv_shape = KVShape(
            num_layers=config.n_layer,
            num_kv_heads=config.n_head,
            head_dim=width // config.n_head,
            dtype=checkpoint.dtype,
        )
        self._eps: float = config.layer_norm_epsilon
        prefix = "transformer." if checkpoint.has("transformer.wte.weight") else ""
        self._tokens = checkpoint.tensor(f"{prefix}wte.weight", (config.vocab_size, width))
        self._positions = checkpoint.tensor(f"{prefix}wpe.weight", (config.n_positions, width))
        self._norm = _Norm(checkpoint, f"{prefix}ln_f", self._eps)
        self._layers = [_Layer(checkpoint, f"{prefix}h.{i}") for i in range(config.n_layer)]
        untied = checkpoint.has("lm_head.weight") and not config.tie_word_embeddings
        self._head = make_linear(checkpoint.tensor("lm_head.weight") if untied else self._tokens)

    def hidden(
        self, token_ids: torch.Tensor, positions: torch.Tensor, plan: AttentionPlan
    ) -> torch.Tensor:
        """Return (rows, hidden) before the final norm."""
        states = embedding(token_ids, self._tokens) + embedding(positions, self._positions)
        for index, layer in enumerate(self._layers):
            states = layer.forward(index, states, plan)
        return states

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return (rows, vocab_size) in float32."""
        return self._head(self._norm(hidden)).float()


class _Layer:
    def __init__(self, checkpoint: Checkpoint, prefix: str) -> None:
        config = checkpoint.config
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
        self._act = ACT2FN[config.activation_function]
        self._width = width

    def forward(self, index: int, states: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        qkv = self._qkv(self._attn_norm(states))
        attended = plan.attend(index, qkv[:, : self._width], qkv[:, self._width :])
        states = states + self._out(attended)
        down: torch.Tensor = self._down(self._act(self._up(self._mlp_norm(states))))
        return states + down


class _Norm:
    def __init__(self, checkpoint: Checkpoint, prefix: str, eps: float) -> None:
        self._weight = checkpoint.tensor(f"{prefix}.weight")
        self._bias = checkpoint.tensor(f"{prefix}.bias")
        self._eps = eps

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return layer_norm(states, self._weight.shape, self._weight, self._bias, self._eps)
