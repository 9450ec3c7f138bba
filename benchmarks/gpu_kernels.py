"""Kernels of a GPU step beside the device's limits, and whole steps made of them.

Llama-8B's shape with random weights in bfloat16. Steps run as the engine runs them: decoding in a
captured graph over paged state, prompts eagerly. Needs a GPU:

    python benchmarks/gpu_kernels.py
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from frame import Row, bound, comparison, fact, finish
from torch.nn.functional import linear

from deepseek.engine.batch import LayerKV, StepBatch
from deepseek.engine.models.llama import norm_of_sum
from deepseek.engine.models.projection import Projection
from deepseek.engine.ops.triton.linear import MAX_ROWS, GpuLinear, SmallLinear
from deepseek.engine.ops.triton.ops import TritonOps

DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16
BLOCK_TOKENS = 64
L2_BYTES = 50_000_000
REPEATS = 20
SCALE = 128**-0.5
DECODES = ((1, 576), (1, 8192), (16, 576), (64, 576), (128, 576), (256, 576), (256, 1088))
"""(sequences, context)"""
PROMPTS = ((1, 512), (1, 2048), (1, 8192), (16, 512))
"""(prompts, length)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a Llama-like decoder."""

    hidden: int = 4096
    inner: int = 14336
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    vocab: int = 128_256

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(out, in) of each kind of linear layer."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "qkv": (queries + 2 * keys, self.hidden),
            "out": (self.hidden, queries),
            "gate_up": (2 * self.inner, self.hidden),
            "down": (self.hidden, self.inner),
            "head": (self.vocab, self.hidden),
        }


def blocks(num_tokens: int) -> int:
    """Return how many blocks hold so many tokens."""
    return -(-num_tokens // BLOCK_TOKENS)


def drawn(*shape: int, scale: float = 1.0) -> torch.Tensor:
    """Return random numbers; zeros would be faster than data."""
    return torch.empty(shape, dtype=DTYPE, device=DEVICE).normal_(0.0, scale)


def seconds(run: Callable[[], object], *, repeats: int = REPEATS) -> float:
    """Return the median time of `run` on the device, after a warm-up."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return median(times)


def captured(calls: Sequence[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    """Return a graph of the calls in order; each has run once before, to be compiled."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def graph_seconds(calls: Sequence[Callable[[], object]]) -> float:
    """Return the time of one call, launched from a graph of all of them."""
    return seconds(captured(calls).replay) / len(calls)


def decode_batch(num_sequences: int, context: int, *, max_blocks: int) -> StepBatch:
    """Return a step of one row for each sequence, blocks in random order."""
    order = torch.randperm(num_sequences * max_blocks, device=DEVICE)
    tables = order.view(num_sequences, max_blocks).int()
    rows = torch.arange(num_sequences, device=DEVICE)
    last = context - 1
    slots = tables[:, last // BLOCK_TOKENS].long() * BLOCK_TOKENS + last % BLOCK_TOKENS
    return StepBatch(
        token_ids=rows,
        positions=torch.full_like(rows, last),
        kv_rows=slots,
        query_starts=torch.arange(num_sequences + 1, device=DEVICE, dtype=torch.int32),
        context_lens=torch.full_like(rows, context).int(),
        block_tables=tables,
        num_decodes=num_sequences,
        max_query_rows=1,
        max_context_len=max_blocks * BLOCK_TOKENS,
    )


def prompt_batch(num_prompts: int, length: int) -> StepBatch:
    """Return a step of whole prompts."""
    tables = torch.randperm(num_prompts * blocks(length), device=DEVICE).view(num_prompts, -1).int()
    positions = torch.arange(length, device=DEVICE).repeat(num_prompts)
    owners = tables.long().repeat_interleave(BLOCK_TOKENS, dim=1)[:, :length].flatten()
    return StepBatch(
        token_ids=positions,
        positions=positions,
        kv_rows=owners * BLOCK_TOKENS + positions % BLOCK_TOKENS,
        query_starts=torch.arange(num_prompts + 1, device=DEVICE, dtype=torch.int32) * length,
        context_lens=torch.full((num_prompts,), length, device=DEVICE, dtype=torch.int32),
        block_tables=tables,
        num_decodes=0,
        max_query_rows=length,
        max_context_len=length,
    )


def paged_state(shape: ModelShape, num_blocks: int) -> LayerKV:
    """Return one layer's random state."""
    size = (num_blocks, shape.num_kv_heads, BLOCK_TOKENS, shape.head_dim)
    return LayerKV(drawn(*size), drawn(*size))


class Stack:
    """A decoder of random weights, in the engine's own operations."""

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape
        self.ops = TritonOps(DEVICE)
        self.linears = [
            {name: self._linear(size) for name, size in shape.linears.items() if name != "head"}
            for _ in range(shape.num_layers)
        ]
        self.head = self._linear(shape.linears["head"])
        self.embedding = drawn(shape.vocab, shape.hidden)
        self.norm = torch.ones(shape.hidden, dtype=DTYPE, device=DEVICE)
        angles = torch.rand(1 << 14, shape.head_dim // 2, device=DEVICE) * 6.28
        self.rotary = torch.cat((angles.cos(), angles.sin()), dim=-1)

    def forward(
        self, batch: StepBatch, layers: Sequence[LayerKV], *, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the greedy next token of each of `rows`, or of all."""
        ops, shape = self.ops, self.shape
        residual = torch.nn.functional.embedding(batch.token_ids, self.embedding)
        states: torch.Tensor | None = None
        for index, (linears, kv) in enumerate(zip(self.linears, layers, strict=True)):
            normed = norm_of_sum(ops, states, residual, self.norm, 1e-5)
            queries = ops.rotate_and_store(
                linears["qkv"](normed), self.rotary, batch, kv, num_heads=shape.num_heads
            )
            attended = ops.attend(queries, batch, kv, scale=shape.head_dim**-0.5)
            if rows is not None and index == shape.num_layers - 1:
                attended, residual = attended[rows], residual[rows]
            states = linears["out"].add_to(residual, attended, None)
            normed = norm_of_sum(ops, states, residual, self.norm, 1e-5)
            gated = linears["gate_up"].gated_silu(normed, None, ops)
            states = linears["down"].add_to(residual, gated, None)
        return self.head(norm_of_sum(ops, states, residual, self.norm, 1e-5)).argmax(dim=-1)

    def _linear(self, size: tuple[int, int]) -> Projection:
        linear = GpuLinear(drawn(*size, scale=size[1] ** -0.5), None)
        return Projection(linear, names=(), in_features=size[1], out_features=size[:1])


def measure_limits(shape: ModelShape) -> list[Row]:
    """Measure what the device can do: copies and matrix products."""
    source = drawn(1 << 31)
    target = torch.empty_like(source)
    left, right = drawn(8192, 8192), drawn(8192, 8192)
    copy_s = seconds(partial(target.copy_, source))
    product_s = seconds(partial(torch.matmul, left, right))
    return [
        fact("device", torch.cuda.get_device_name()),
        fact("copy, read and written, TB/s", 2 * 2 * (1 << 31) / copy_s / 1e12),
        fact("matrix product of 8192, TFLOP/s", 2 * 8192**3 / product_s / 1e12),
    ]


def measure_linears(shape: ModelShape) -> list[Row]:
    """Compare the kernel for few rows with the vendor's library, over weights beyond the cache."""
    small = SmallLinear(DEVICE)
    rows = []
    for name, (width_out, width_in) in shape.linears.items():
        size = width_out * width_in * DTYPE.itemsize
        weights = [drawn(width_out, width_in) for _ in range(-(-8 * L2_BYTES // size))]
        for num_rows in (1, 8, MAX_ROWS):
            inputs = drawn(num_rows, width_in)
            ours_s = graph_seconds([partial(small, inputs, weight) for weight in weights])
            peer_s = graph_seconds([partial(linear, inputs, weight) for weight in weights])
            label = f"{name} of {num_rows} rows"
            rows.append(
                comparison(
                    f"{label}, us (peer: cuBLAS)",
                    ours=ours_s * 1e6,
                    peer=peer_s * 1e6,
                    lower_is_better=True,
                )
            )
            rows.append(fact(f"{label}, TB/s", size / ours_s / 1e12))
    return rows


def measure_decode_attention(shape: ModelShape) -> list[Row]:
    """Measure reading the paged state, one layer."""
    ops = TritonOps(DEVICE)
    rows = []
    for num_sequences, context in DECODES:
        batch = decode_batch(num_sequences, context, max_blocks=blocks(context + 64))
        layers = [paged_state(shape, batch.block_tables.numel()) for _ in range(4)]
        queries = drawn(num_sequences, shape.num_heads, shape.head_dim)
        calls = [partial(ops.attend, queries, batch, kv, scale=SCALE) for kv in layers]
        taken_s = graph_seconds(calls)
        read = num_sequences * context * 2 * shape.num_kv_heads * shape.head_dim * DTYPE.itemsize
        name = f"decode attention, {num_sequences} x {context}"
        rows += [fact(f"{name}, us", taken_s * 1e6), fact(f"{name}, TB/s", read / taken_s / 1e12)]
    return rows


def measure_prompt_attention(shape: ModelShape) -> list[Row]:
    """Measure whole prompts, one layer."""
    ops = TritonOps(DEVICE)
    rows = []
    for num_prompts, length in PROMPTS:
        batch = prompt_batch(num_prompts, length)
        kv = paged_state(shape, batch.block_tables.numel())
        queries = drawn(num_prompts * length, shape.num_heads, shape.head_dim)
        taken_s = seconds(partial(ops.attend, queries, batch, kv, scale=SCALE))
        work = 2 * num_prompts * length**2 * shape.num_heads * shape.head_dim
        name = f"prompt attention, {num_prompts} x {length}"
        rows += [
            fact(f"{name}, us", taken_s * 1e6),
            fact(f"{name}, TFLOP/s", work / taken_s / 1e12),
        ]
    return rows


def measure_steps(shape: ModelShape) -> list[Row]:
    """Measure whole steps: decoding from a graph, prompts eagerly."""
    stack = Stack(shape)
    most = max(sequences * blocks(context) for sequences, context in DECODES + PROMPTS)
    layers = [paged_state(shape, most) for _ in range(shape.num_layers)]
    rows = []
    for num_sequences, context in DECODES:
        batch = decode_batch(num_sequences, context, max_blocks=blocks(context))
        taken_s = graph_seconds([partial(stack.forward, batch, layers)])
        at_most = 6.5 if (num_sequences, context) == (1, 576) else None
        name = f"decode step, {num_sequences} x {context}, ms"
        rows.append(bound(name, taken_s * 1e3, at_most=at_most))
    for num_prompts, length in PROMPTS:
        batch = prompt_batch(num_prompts, length)
        last = batch.query_starts[1:].long() - 1
        taken_s = seconds(partial(stack.forward, batch, layers, rows=last), repeats=5)
        at_most = 200.0 if length == 8192 else None
        name = f"prompt step, {num_prompts} x {length}, ms"
        rows.append(bound(name, taken_s * 1e3, at_most=at_most))
    return rows


MEASURES = (
    measure_limits,
    measure_linears,
    measure_decode_attention,
    measure_prompt_attention,
    measure_steps,
)


@torch.inference_mode()
def main() -> int:
    """Run every part."""
    rows = []
    for measure in MEASURES:
        rows += measure(ModelShape())
        torch.cuda.empty_cache()
    return finish("gpu_kernels", rows)


if __name__ == "__main__":
    sys.exit(main())
