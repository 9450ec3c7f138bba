"""Multi-head latent attention (arXiv:2405.04434, section 2.1) over one stored vector per token.

Stored are a token's latent, from which every head's keys and values are made, and one rotated key
that all heads share. The matrices that make keys and values are applied to queries and attended
latents instead (they are "absorbed"), so that attention is multi-query attention with keys of
`kv_lora_rank + qk_rope_head_dim` elements whose first `kv_lora_rank` are the values.
"""

import torch

from deepseek.core.errors import UnsupportedModel
from deepseek.engine.batch import LayerKV, StepBatch
from deepseek.engine.models.checkpoint import Checkpoint
from deepseek.engine.models.rotary import YarnRope, rotary_table
from deepseek.engine.ops.base import Ops

_NORM_EPS = 1e-6
"""Of the norms inside attention; the families' code does not read it from the config."""


class LatentAttention:
    """One layer's attention."""

    def __init__(self, checkpoint: Checkpoint, ops: Ops, prefix: str) -> None:
        """Read the layer's tensors; the projections from hidden states are fused into one."""
        config = checkpoint.config
        self._ops = ops
        self._num_heads: int = config.num_attention_heads
        self._nope: int = config.qk_nope_head_dim
        self._rope: int = config.qk_rope_head_dim
        self._rank: int = config.kv_lora_rank
        self._interleaved: bool = config.rope_interleave
        self._scale = _scale(checkpoint)
        hidden, query_rank = config.hidden_size, config.q_lora_rank
        query_width = self._num_heads * (self._nope + self._rope)
        if query_rank is None and checkpoint.has(f"{prefix}.kv_a_proj_with_mqa.bias"):
            raise UnsupportedModel(
                f"{checkpoint.path}: attention_bias without q_lora_rank is not supported"
            )
        self._first_width = query_width if query_rank is None else query_rank
        self._down = checkpoint.linear(
            f"{prefix}.q_proj" if query_rank is None else f"{prefix}.q_a_proj",
            f"{prefix}.kv_a_proj_with_mqa",
            in_features=hidden,
            out_features=(self._first_width, self._rank + self._rope),
        )
        self._query_up = None
        if query_rank is not None:
            self._query_norm = checkpoint.tensor(f"{prefix}.q_a_layernorm.weight", (query_rank,))
            self._query_up = checkpoint.linear(
                f"{prefix}.q_b_proj", in_features=query_rank, out_features=(query_width,)
            )
        self._latent_norm = checkpoint.tensor(f"{prefix}.kv_a_layernorm.weight", (self._rank,))
        value_dim = config.v_head_dim
        up = checkpoint.tensor(
            f"{prefix}.kv_b_proj.weight",
            (self._num_heads * (self._nope + value_dim), self._rank),
        ).unflatten(0, (self._num_heads, -1))
        self._key_up = up[:, : self._nope].contiguous()
        self._value_up = up[:, self._nope :].transpose(1, 2).contiguous()
        self._out = checkpoint.linear(
            f"{prefix}.o_proj", in_features=self._num_heads * value_dim, out_features=(hidden,)
        )

    def forward(
        self, normed: torch.Tensor, turns: torch.Tensor, batch: StepBatch, kv: LayerKV
    ) -> torch.Tensor:
        """Return (rows, hidden); `turns` are the rows' own of `rotary_turns`."""
        first, latent, shared_key = self._down(normed, batch.choices).split(
            (self._first_width, self._rank, self._rope), dim=-1
        )
        plain, rotated = self._queries(first, batch).split((self._nope, self._rope), dim=-1)
        rotated, shared_key = self._rotate(rotated, shared_key, turns)
        latent = self._ops.rms_norm(latent.contiguous(), self._latent_norm, _NORM_EPS)
        self._ops.store(torch.cat((latent, shared_key), dim=-1)[:, None], None, batch, kv)
        absorbed = torch.bmm(plain.transpose(0, 1), self._key_up).transpose(0, 1)
        queries = torch.cat((absorbed, rotated), dim=-1)
        attended = self._ops.attend(queries, batch, kv, scale=self._scale)
        latents = attended.unflatten(1, (self._num_heads, self._rank)).transpose(0, 1)
        values = torch.bmm(latents, self._value_up).transpose(0, 1).flatten(1)
        out: torch.Tensor = self._out(values, batch.choices)
        return out

    def _queries(self, first: torch.Tensor, batch: StepBatch) -> torch.Tensor:
        """Return (rows, heads, nope + rope)."""
        if self._query_up is not None:
            normed = self._ops.rms_norm(first.contiguous(), self._query_norm, _NORM_EPS)
            first = self._query_up(normed, batch.choices)
        return first.unflatten(1, (self._num_heads, -1))

    def _rotate(
        self, queries: torch.Tensor, key: torch.Tensor, turns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate (rows, heads, rope) queries and the (rows, rope) key they share.

        Pairs come out side by side whichever way they went in: attention sees queries and keys in
        the same order.
        """
        heads = torch.cat((queries, key[:, None]), dim=1).float()
        if self._interleaved:
            pairs = heads.unflatten(-1, (-1, 2))
        else:
            pairs = heads.unflatten(-1, (2, -1)).transpose(-1, -2).contiguous()
        turned = torch.view_as_real(torch.view_as_complex(pairs) * turns).flatten(-2)
        turned = turned.to(queries.dtype)
        return turned[:, :-1], turned[:, -1]


def rotary_turns(checkpoint: Checkpoint) -> torch.Tensor:
    """Return complex64 (positions, 1, rope / 2): what multiplies each pair of a rotated head."""
    config = checkpoint.config
    table = rotary_table(
        config.rope,
        dim=config.qk_rope_head_dim,
        max_positions=config.max_position_embeddings,
        device=checkpoint.device,
    )
    cos, sin = table.chunk(2, dim=-1)
    return torch.complex(cos, sin)[:, None]


def _scale(checkpoint: Checkpoint) -> float:
    """Return the factor on attention scores; YaRN's temperature is squared into it."""
    config = checkpoint.config
    scale: float = (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5
    if not isinstance(config.rope, YarnRope):
        return scale
    return scale * config.rope.temperature(config.rope.mscale_all_dim or 0.0) ** 2
