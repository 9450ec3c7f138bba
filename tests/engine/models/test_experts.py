"""Routed experts, in a loop and grouped, against every expert computed for every row."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import linear, silu

from deepseek.core.errors import UnsupportedModel
from deepseek.engine.batch import RowChoices, StepBatch
from deepseek.engine.models.checkpoint import Checkpoint
from deepseek.engine.models.experts import (
    ExpertLayout,
    GroupedExperts,
    LoopedExperts,
    load_experts,
)
from deepseek.engine.models.projection import AdapterWeights, Projection, stack_adapters
from deepseek.engine.ops.reference import ReferenceOps

LAYOUT = ExpertLayout(prefix="model.layers.1.mlp.experts", num_experts=8, inner=48)
HIDDEN = 64


def rows_of(count: int) -> StepBatch:
    """A batch of which experts read the adapters only."""
    rows, sequences = torch.zeros(count, dtype=torch.int64), torch.zeros(1, dtype=torch.int32)
    return StepBatch(
        token_ids=rows,
        positions=rows,
        kv_rows=rows,
        query_starts=torch.tensor([0, count], dtype=torch.int32),
        context_lens=sequences,
        block_tables=sequences[:, None],
        num_decodes=0,
        max_query_rows=count,
        max_context_len=count,
    )


def routing(count: int, *, top_k: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(7)
    scores, experts = torch.rand(count, LAYOUT.num_experts).topk(top_k, dim=-1)
    return scores.to(device), experts.to(device)


def dense(
    checkpoint: Checkpoint, states: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor
) -> torch.Tensor:
    """Return the same sums in float32, in the plainest way."""
    total = torch.zeros(states.shape, device=states.device)
    for index in range(LAYOUT.num_experts):
        gate, up, down = (
            checkpoint.tensor(f"{LAYOUT.prefix}.{index}.{part}_proj.weight").float()
            for part in ("gate", "up", "down")
        )
        out = linear(silu(linear(states.float(), gate)) * linear(states.float(), up), down)
        total += out * (weights * (experts == index)).sum(dim=-1, keepdim=True)
    return total


def checkpoint_of(path: Path, dtype: torch.dtype, device: str = "cpu") -> Checkpoint:
    return Checkpoint(path, dtype=dtype, device=device)


@pytest.mark.parametrize("kind", [LoopedExperts, GroupedExperts])
@pytest.mark.parametrize(("count", "top_k"), [(1, 1), (1, 8), (2, 3), (37, 2)])
def test_experts_sum_what_the_gate_chose(
    tiny_qwen3_moe_dir: Path,
    kind: type[LoopedExperts | GroupedExperts],
    count: int,
    top_k: int,
) -> None:
    checkpoint = checkpoint_of(tiny_qwen3_moe_dir, torch.float32)
    experts = kind(checkpoint, ReferenceOps(), LAYOUT)
    weights, chosen = routing(count, top_k=top_k)
    states = torch.randn(count, HIDDEN)
    out = experts.forward(states, weights, chosen, rows_of(count))
    torch.testing.assert_close(
        out, dense(checkpoint, states, weights, chosen), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kind", [LoopedExperts, GroupedExperts])
def test_bfloat16_is_rounded_not_lost(
    tiny_qwen3_moe_dir: Path, kind: type[LoopedExperts | GroupedExperts]
) -> None:
    checkpoint = checkpoint_of(tiny_qwen3_moe_dir, torch.bfloat16)
    weights, chosen = routing(37, top_k=2)
    states = torch.randn(37, HIDDEN, dtype=torch.bfloat16)
    out = kind(checkpoint, ReferenceOps(), LAYOUT).forward(states, weights, chosen, rows_of(37))
    assert out.dtype is torch.bfloat16
    expected = dense(checkpoint, states, weights, chosen)
    assert (out - expected).norm() < 0.01 * expected.norm()


def test_all_rows_may_choose_the_last_expert(tiny_qwen3_moe_dir: Path) -> None:
    checkpoint = checkpoint_of(tiny_qwen3_moe_dir, torch.float32)
    weights = torch.ones(5, 1)
    chosen = torch.full((5, 1), LAYOUT.num_experts - 1)
    states = torch.randn(5, HIDDEN)
    expected = dense(checkpoint, states, weights, chosen)
    for kind in (LoopedExperts, GroupedExperts):
        experts = kind(checkpoint, ReferenceOps(), LAYOUT)
        out = experts.forward(states, weights, chosen, rows_of(5))
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


class NamedLayers(Checkpoint):
    """Remembers its layers by name, as whoever loads adapters does."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.layers: dict[tuple[str, ...], Projection] = {}

    def linear(self, *names: str, **options: Any) -> Projection:
        self.layers[names] = super().linear(*names, **options)
        return self.layers[names]


def test_a_row_takes_its_own_adapter_along_to_each_expert(tiny_qwen3_moe_dir: Path) -> None:
    checkpoint = NamedLayers(tiny_qwen3_moe_dir, dtype=torch.float32, device="cpu")
    experts = load_experts(checkpoint, ReferenceOps(), LAYOUT)
    weights, chosen = routing(6, top_k=2)
    states = torch.randn(6, HIDDEN)
    plain = experts.forward(states, weights, chosen, rows_of(6))
    expert = int(chosen[4, 1])
    down, up = torch.randn(4, LAYOUT.inner), torch.randn(HIDDEN, 4)
    name = f"{LAYOUT.prefix}.{expert}.down_proj"
    checkpoint.layers[(name,)].adapters = stack_adapters({1: AdapterWeights(down=down, up=up)})
    choices = RowChoices(adapters=torch.tensor([0, 0, 0, 0, 1, 0]))
    out = experts.forward(states, weights, chosen, replace(rows_of(6), choices=choices))
    gate, up_proj = (
        checkpoint.tensor(f"{LAYOUT.prefix}.{expert}.{part}_proj.weight") for part in ("gate", "up")
    )
    inner = silu(linear(states[4], gate)) * linear(states[4], up_proj)
    plain[4] += weights[4, 1] * (up @ (down @ inner))
    torch.testing.assert_close(out, plain, atol=1e-4, rtol=1e-4)


def test_a_cpu_packs_each_expert(tiny_qwen3_moe_dir: Path) -> None:
    checkpoint = checkpoint_of(tiny_qwen3_moe_dir, torch.float32)
    assert isinstance(load_experts(checkpoint, ReferenceOps(), LAYOUT), LoopedExperts)


def test_a_gpu_refuses_what_it_would_compute_slowly(tiny_qwen3_moe_dir: Path) -> None:
    checkpoint = checkpoint_of(tiny_qwen3_moe_dir, torch.float32, "cuda")
    with pytest.raises(UnsupportedModel, match="dtype: bfloat16"):
        load_experts(checkpoint, ReferenceOps(), LAYOUT)


def test_a_gpu_refuses_widths_it_cannot_read(tiny_qwen3_moe_dir: Path) -> None:
    checkpoint = checkpoint_of(tiny_qwen3_moe_dir, torch.bfloat16, "cuda")
    with pytest.raises(UnsupportedModel, match="multiples of 8 wide, these are 64 and 44"):
        load_experts(checkpoint, ReferenceOps(), replace(LAYOUT, inner=44))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_captured_graph_follows_the_gate(tiny_qwen3_moe_dir: Path) -> None:
    checkpoint = checkpoint_of(tiny_qwen3_moe_dir, torch.bfloat16, "cuda")
    experts = load_experts(checkpoint, ReferenceOps(), LAYOUT)
    assert isinstance(experts, GroupedExperts)
    batch = rows_of(37)
    states = torch.randn(37, HIDDEN, dtype=torch.bfloat16, device="cuda")
    weights, chosen = routing(37, top_k=2, device="cuda")
    static = (states.clone(), weights.clone(), torch.zeros_like(chosen))
    experts.forward(*static, batch)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = experts.forward(*static, batch)
    static[2].copy_(chosen)
    graph.replay()
    expected = dense(checkpoint, states, weights, chosen)
    assert (out - expected).norm() < 0.01 * expected.norm()
