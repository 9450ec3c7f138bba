"""The operations written out in float64, one row at a time: what all are held to."""

from itertools import pairwise

import torch

from deepseek.engine.batch import LayerKV, StepBatch


def rms_norm(states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    states = states.double()
    return states / (states.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def gated_silu(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.double().chunk(2, dim=-1)
    return gate / (1 + (-gate).exp()) * up


def rotate(heads: torch.Tensor, rotary: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotate (rows, heads, dim): element i pairs with element i + dim / 2, as a complex number."""
    first, second = heads.double().chunk(2, dim=-1)
    cos, sin = rotary.double()[positions].unsqueeze(1).chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.complex(cos, sin)
    return torch.cat((turned.real, turned.imag), dim=-1)


def attend(queries: torch.Tensor, batch: StepBatch, kv: LayerKV, scale: float) -> torch.Tensor:
    """Return (rows of sequences, heads, value_dim); zeros for sequences without context."""
    starts, contexts = batch.query_starts.tolist(), batch.context_lens.tolist()
    grouped = queries.double().unflatten(1, (kv.keys.shape[1], -1))
    out = torch.zeros(starts[-1], queries.shape[1], kv.values.shape[3], dtype=torch.float64)
    for index, context in enumerate(contexts):
        for row in range(starts[index], starts[index + 1]) if context else ():
            seen = context - (starts[index + 1] - row) + 1
            keys, values = (_rows(state, batch, index, seen) for state in (kv.keys, kv.values))
            scores = torch.einsum("kgd,tkd->kgt", grouped[row], keys) * scale
            out[row] = torch.einsum("kgt,tkd->kgd", scores.softmax(-1), values).flatten(0, 1)
    return out


def attend_packed(qkv: torch.Tensor, starts: torch.Tensor, num_heads: int) -> torch.Tensor:
    queries, keys, values = qkv.double().view(qkv.shape[0], 3, num_heads, -1).unbind(1)
    out = torch.empty_like(queries)
    bounds = starts.tolist()
    for first, end in pairwise(bounds):
        part = slice(first, end)
        scores = torch.einsum("qhd,khd->hqk", queries[part], keys[part])
        weights = (scores * queries.shape[-1] ** -0.5).softmax(-1)
        out[part] = torch.einsum("hqk,khd->qhd", weights, values[part])
    return out.flatten(1)


def _rows(state: torch.Tensor, batch: StepBatch, index: int, count: int) -> torch.Tensor:
    """Return the first `count` stored rows of a sequence, (tokens, kv_heads, dim)."""
    positions = torch.arange(count)
    blocks = batch.block_tables[index].long()[positions // state.shape[2]]
    return state[blocks, :, positions % state.shape[2]].double()
