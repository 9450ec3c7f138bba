"""Plain torch: exact, slow, and what the other implementations are tested against."""

from itertools import pairwise

import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from deepseek.engine.batch import LayerKV, StepBatch


class ReferenceOps:
    """See `deepseek.engine.ops.base.Ops`. `attend` synchronises with the host."""

    name = "reference"

    def rms_norm(self, states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return rms_norm(states.float(), weight.shape, weight.float(), eps).to(states.dtype)

    def add_rms_norm(
        self, states: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        residual += states
        return self.rms_norm(residual, weight, eps)

    def gated_silu(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.float().chunk(2, dim=-1)
        return (silu(gate) * up).to(gate_up.dtype)

    def rotate_and_store(
        self,
        qkv: torch.Tensor,
        rotary: torch.Tensor,
        batch: StepBatch,
        kv: LayerKV,
        *,
        num_heads: int,
        head_norms: tuple[torch.Tensor, torch.Tensor] | None = None,
        eps: float = 0.0,
    ) -> torch.Tensor:
        num_kv_heads, dim = kv.keys.shape[1], kv.keys.shape[3]
        heads = qkv.view(qkv.shape[0], -1, dim).float()
        queries, keys, values = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
        if head_norms is not None:
            queries = rms_norm(queries, (dim,), head_norms[0].float(), eps)
            keys = rms_norm(keys, (dim,), head_norms[1].float(), eps)
        cos, sin = rotary[batch.positions].unsqueeze(1).chunk(2, dim=-1)
        self.store(rotated(keys, cos, sin).to(qkv.dtype), values.to(qkv.dtype), batch, kv)
        return rotated(queries, cos, sin).to(qkv.dtype)

    def store(
        self, keys: torch.Tensor, values: torch.Tensor | None, batch: StepBatch, kv: LayerKV
    ) -> None:
        stored = batch.kv_rows >= 0
        rows = batch.kv_rows[stored]
        blocks, offsets = rows // kv.block_tokens, rows % kv.block_tokens
        kv.keys[blocks, :, offsets] = keys[stored].to(kv.keys.dtype)
        if values is not None:
            kv.values[blocks, :, offsets] = values[stored].to(kv.values.dtype)

    def attend(
        self, queries: torch.Tensor, batch: StepBatch, kv: LayerKV, *, scale: float
    ) -> torch.Tensor:
        num_rows, num_heads, _ = queries.shape
        out = queries.new_zeros(num_rows, num_heads, kv.values.shape[3])
        starts, lens = batch.query_starts.tolist(), batch.context_lens.tolist()
        for index, length in enumerate(lens):
            first, end = starts[index], starts[index + 1]
            if length == 0 or first == end:
                continue
            blocks = batch.block_tables[index, : -(-length // kv.block_tokens)].long()
            # (kv_heads, tokens, dim)
            keys = kv.keys[blocks].transpose(0, 1).flatten(1, 2)[:, :length].float()
            values = kv.values[blocks].transpose(0, 1).flatten(1, 2)[:, :length].float()
            query = queries[first:end].transpose(0, 1).float()
            positions = torch.arange(length, device=queries.device)
            seen = positions <= positions[length - (end - first) :, None]
            attended = scaled_dot_product_attention(
                query[None], keys[None], values[None], attn_mask=seen, scale=scale, enable_gqa=True
            )
            out[first:end] = attended[0].transpose(0, 1).to(out.dtype)
        return out.flatten(1)

    def attend_packed(
        self, qkv: torch.Tensor, starts: torch.Tensor, max_len: int, *, num_heads: int
    ) -> torch.Tensor:
        num_tokens = qkv.shape[0]
        query, keys, values = qkv.view(num_tokens, 3, num_heads, -1).float().unbind(1)
        out = torch.empty_like(query)
        bounds = starts.tolist()
        for first, end in pairwise(bounds):
            part = slice(first, end)
            attended = scaled_dot_product_attention(
                query[part].transpose(0, 1)[None],
                keys[part].transpose(0, 1)[None],
                values[part].transpose(0, 1)[None],
            )
            out[part] = attended[0].transpose(0, 1)
        return out.flatten(1).to(qkv.dtype)


def rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate (rows, heads, dim) by (rows, 1, dim / 2) tables, halves convention."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
