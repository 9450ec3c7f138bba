"""Measures both systems under the same clients, `transformers serve` beside them.

1. What each model does alone on the whole machine, always busy: its best rate.
2. Both systems, the critical model under the bursty trace and everybody else always busy. *Useful
   utilisation* is the sum over the models of requests per second as a part of the best rate: 1 is
   the whole machine at its best.
3. Both systems under the same arrivals, which both can serve: the critical model's latency.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import uvloop
from engine_measures.placement import running_on
from frame import Row, bound, comparison, fact
from serving_measures.platform import MeasurementFailed, Run, serve
from serving_measures.transformers_serve import MODES, install, serve_peer

from deepseek.cli.load.traces import TraceRow
from deepseek.weights.cache import ModelCache
from headline_measures.cpu_slices import sliced
from headline_measures.systems import (
    BACKGROUND,
    CRITICAL,
    MODELS,
    SLICE_CORES,
    first_core,
    write_plain,
    write_separate,
    write_shared,
)
from headline_measures.workload import (
    Served,
    backlog_plan,
    paced,
    poisson_plan,
    send,
    trace_plan,
    trace_rows,
)

_CRITICAL_LOAD = 0.5
"""Mean rate of the trace as a part of what the critical model's own slice can serve."""
_BACKGROUND_LOAD = 0.6
"""The same of the others, where their arrivals are to be served by both systems."""
_MANY = 100_000

_Sent = tuple[dict[str, Served], float]


@dataclass(slots=True)
class _Figures:
    """Of one system."""

    utilization: float = 0.0
    critical_ms: list[float] = field(default_factory=list)
    num_served: int = 0
    seconds: float = 1.0
    num_failed: int = 0

    def latency_ms(self, percent: float) -> float:
        return float(np.percentile(self.critical_ms, percent))

    @property
    def per_second(self) -> float:
        return self.num_served / self.seconds


def headline(run: Run) -> list[Row]:
    """Return the rows of all three."""
    seconds = run.count(90, 8)
    rows = trace_rows(run.count(1200, 60))
    shared = write_shared(run.work / "shared.yaml")
    separate = write_separate(run.work / "separate.yaml")

    def backlogged(url: str, models: tuple[str, ...], for_s: float) -> dict[str, float]:
        plans = {m: backlog_plan(m, rows=rows, count=min(_MANY, int(for_s * 400))) for m in models}
        served, took_s = _run(send(url, plans, stop_after_s=for_s))
        return {model: found.per_second(took_s) for model, found in served.items()}

    short_s = run.count(15, 3)
    plain = write_plain(run.work / "plain.yaml")
    with serve(run, plain, name="alone") as platform:
        backlogged(platform.url, MODELS, 3.0)  # warm
        best = {m: backlogged(platform.url, (m,), short_s)[m] for m in MODELS}
    with (
        serve(run, separate, name="separate") as platform,
        sliced(platform.workers(), cores=SLICE_CORES),
    ):
        slices = backlogged(platform.url, MODELS, short_s)
        arrivals = paced(rows, per_second=_CRITICAL_LOAD * slices[CRITICAL])
        arrivals = [row for row in arrivals if row.arrival_s < seconds]
        before = _measured(platform.url, best, slices, arrivals, seconds)
    with serve(run, shared, name="shared") as platform:
        backlogged(platform.url, MODELS, 3.0)
        ours = _measured(platform.url, best, slices, arrivals, seconds)
    peer = _transformers(run, arrivals, seconds)
    return [
        *[fact(f"- {m}: best alone (requests/s)", best[m]) for m in MODELS],
        *[fact(f"- {m}: separate, all busy (requests/s)", slices[m]) for m in MODELS],
        fact(
            "- trace: requests, mean per second", f"{len(arrivals)}, {len(arrivals) / seconds:.2f}"
        ),
        comparison(
            "utilisation for useful work (1 = the machine at its best)",
            ours=ours.utilization,
            peer=before.utilization,
            at_least=1.4,
        ),
        comparison(
            "critical model, same arrivals: latency p99 (ms)",
            ours=ours.latency_ms(99),
            peer=before.latency_ms(99),
            at_least=round(1 / 0.35, 3),
            lower_is_better=True,
        ),
        comparison(
            "critical model, same arrivals: latency p50 (ms)",
            ours=ours.latency_ms(50),
            peer=before.latency_ms(50),
            lower_is_better=True,
        ),
        comparison(
            "same arrivals: requests answered per second, all models",
            ours=ours.per_second,
            peer=before.per_second,
            at_least=0.98,
        ),
        bound("same arrivals: requests that failed, ours", ours.num_failed, at_most=0),
        fact("- requests that failed, separate", before.num_failed),
        comparison(
            "critical model beside `transformers serve` alone on one core: latency p99 (ms)",
            ours=ours.latency_ms(99),
            peer=peer,
            lower_is_better=True,
        ),
    ]


def _measured(
    url: str,
    best: dict[str, float],
    slices: dict[str, float],
    arrivals: Sequence[TraceRow],
    seconds: float,
) -> _Figures:
    figures = _Figures()
    busy = {CRITICAL: trace_plan(arrivals)} | {
        model: backlog_plan(model, rows=arrivals, count=int(seconds * 400)) for model in BACKGROUND
    }
    served, took_s = _run(send(url, busy, stop_after_s=seconds))
    figures.utilization = sum(
        found.per_second(took_s) / best[model] for model, found in served.items()
    )
    same = {CRITICAL: trace_plan(arrivals)} | {
        model: poisson_plan(model, per_second=_BACKGROUND_LOAD * slices[model], seconds=seconds)
        for model in BACKGROUND
    }
    served, figures.seconds = _run(send(url, same))
    figures.critical_ms = _latencies_ms(served[CRITICAL])
    figures.num_served = sum(len(found.complete) for found in served.values())
    figures.num_failed = sum(len(found.records) for found in served.values()) - figures.num_served
    return figures


def _run(sending: Coroutine[Any, Any, _Sent]) -> _Sent:
    """Run on uvloop, which halves what the generator takes from the servers beside it."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(sending)


def _latencies_ms(served: Served) -> list[float]:
    """Return the times from when each request should have been sent to its complete answer."""
    found = [1000 * (record.done_s - record.due_s) for record in served.complete]
    if not found:
        raise MeasurementFailed("no request of the critical model was answered")
    return found


def _transformers(run: Run, arrivals: Sequence[TraceRow], seconds: float) -> float | None:
    """Return the p99 (ms) of `transformers serve` with one core to itself, under the same trace."""
    python, directory = install(), ModelCache.default().path("smollm2-135m")
    with (
        running_on({first_core()}),
        serve_peer(run, MODES[0], directory, python=python) as url,
    ):
        # Fields that it does not know are refused; so its answers may end early, to its favour.
        plan = replace(trace_plan(arrivals), extra_body={})
        served, _ = _run(
            send(url, {CRITICAL: plan}, stop_after_s=3 * seconds, names={CRITICAL: str(directory)})
        )
    unanswered = len(arrivals) - len(served[CRITICAL].complete)
    latencies = _latencies_ms(served[CRITICAL])
    # Those that were never answered waited at least as long as we did.
    return float(np.percentile([*latencies, *[3000.0 * seconds] * unanswered], 99))
