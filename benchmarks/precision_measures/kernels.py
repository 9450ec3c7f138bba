"""Products of one layer, in turns, with weights that come from memory."""

import math
import random
import time
from collections.abc import Mapping
from typing import Any

import torch
from frame import Row, comparison, fact
from serving_measures.platform import Run

from precision_measures.contestants import CONTESTANTS, Layer

SHAPES = ((576, 576), (3072, 576), (576, 1536), (49152, 576), (8192, 2048))
"""(outputs, inputs): SmolLM2-135M's, and one of a model of billions."""
ROWS = (1, 8, 16, 64)
THREADS = (1, 2)
_MEMORY_BYTES = 48 * 2**20
"""Weights that a contestant goes round, more than caches hold, counted at four bits each."""
_MOST_COPIES = 100
_TURN_S = 0.08
"""Time for each contestant at each number of rows."""
_CALLS = 4
"""Calls a turn, one layer after the other as a model makes them: the first finds the caches' lines
of code taken by the contestant before."""

Times = dict[tuple[int, int], dict[str, float]]
"""Microseconds of every contestant, by threads and rows, of one shape."""


def kernels(run: Run, details: dict[str, Any]) -> list[Row]:
    """Return ratios, geometric means over the shapes; `details` gets every time."""
    shapes = SHAPES[:1] if run.quick else SHAPES
    times = {shape: _shape_times(*shape, quick=run.quick) for shape in shapes}
    details["kernel_us"] = {
        f"{inputs} -> {outputs}": {
            f"{rows} rows, {threads} threads": {name: round(us, 1) for name, us in found.items()}
            for (threads, rows), found in by_size.items()
        }
        for (outputs, inputs), by_size in times.items()
    }
    return [
        row
        for threads in THREADS
        for num_rows in ROWS
        for row in _ratios(
            [found[threads, num_rows] for found in times.values()], threads, num_rows
        )
    ]


def _ratios(times: list[dict[str, float]], threads: int, num_rows: int) -> list[Row]:
    where = f"{num_rows} rows, {threads} threads"

    def row(ours: str, peer: str, *, at_least: float | None = None) -> Row:
        return comparison(
            f"{ours} beside {peer}, {where}, us",
            ours=_mean([found[ours] for found in times]),
            peer=_mean([found[peer] for found in times]),
            at_least=at_least,
            lower_is_better=True,
        )

    return [
        row("nested int8", "plain int8", at_least=0.95),
        row("nested int4", "nested int8", at_least=1.2 if num_rows == 1 else None),
        row("residual int8", "plain int8"),
        row("nested int8", "torch bf16", at_least=1.2),
        row("nested int8", "own bf16"),
        row("nested int8", "fbgemm int8", at_least=1.0),
        row("nested int4", "torch int4", at_least=1.4 if num_rows == 1 else 1.0),
        fact(f"nested int4 over own bf16, {where}", _times_faster(times)),
    ]


def _times_faster(times: list[dict[str, float]]) -> float:
    ours, peer = ([found[name] for found in times] for name in ("nested int4", "own bf16"))
    return _mean(peer) / _mean(ours)


def _mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _shape_times(outputs: int, inputs: int, *, quick: bool) -> Times:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator) * 0.02
    num_copies = min(_MOST_COPIES, max(2, 2 * _MEMORY_BYTES // weight.numel()))
    layers = {
        name: [make(weight) for _ in range(2 if quick else num_copies)]
        for name, make in CONTESTANTS.items()
    }
    before = torch.get_num_threads()
    times: Times = {}
    try:
        for threads in THREADS:
            torch.set_num_threads(threads)
            for num_rows in ROWS:
                batch = torch.randn(num_rows, inputs, generator=generator).bfloat16()
                times[threads, num_rows] = _in_turns(layers, batch, quick=quick)
    finally:
        torch.set_num_threads(before)
    return times


def _in_turns(
    layers: Mapping[str, list[Layer]], batch: torch.Tensor, *, quick: bool
) -> dict[str, float]:
    """Return each contestant's lower quartile, in microseconds."""
    times: dict[str, list[float]] = {name: [] for name in layers}
    order = random.Random(0)  # noqa: S311 - whom a contestant follows must not be always the same
    end = time.perf_counter() + (0 if quick else _TURN_S * len(layers))
    turn = 0
    while turn < 8 or time.perf_counter() < end:
        for name in order.sample(sorted(layers), len(layers)):
            copies = layers[name]
            start = time.perf_counter()
            for call in range(_CALLS):
                copies[(turn * _CALLS + call) % len(copies)](batch)
            times[name].append((time.perf_counter() - start) / _CALLS)
        turn += 1
    return {name: sorted(found)[len(found) // 4] * 1e6 for name, found in times.items()}
