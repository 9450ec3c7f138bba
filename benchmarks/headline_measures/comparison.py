"""Measures both systems under the same clients, `transformers serve` beside them.

1. What each model does alone on the whole machine, always busy: its best rate; and in its slice.
2. Both systems under the same arrivals: every model has its own part of the bursty trace, at a mean
   rate that its slice could serve. *Utilisation for useful work* is the sum over the models of
   answers in time per second, each as a part of the best rate: 1 is the whole machine at its best.
   An answer that comes late has been computed for nothing.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
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
    bursty_plan,
    is_in_time,
    paced,
    send,
    trace_plan,
    trace_rows,
)

_LOAD = 0.6
"""Mean rate of the arrivals as a part of what the model's own slice can serve."""
_MANY = 100_000

_Sent = tuple[dict[str, Served], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figures:
    """Of one system."""

    utilization: float
    in_time: float
    critical_ms: list[float]
    critical_ttft_ms: list[float]
    num_served: int
    seconds: float
    num_failed: int

    def latency_ms(self, percent: float) -> float:
        return float(np.percentile(self.critical_ms, percent))

    def ttft_ms(self, percent: float) -> float:
        return float(np.percentile(self.critical_ttft_ms, percent))

    @property
    def per_second(self) -> float:
        return self.num_served / self.seconds


def headline(run: Run) -> list[Row]:
    """Return the rows of all three."""
    seconds = run.count(90, 8)
    rows = {model: trace_rows(model, run.count(3800, 400)) for model in MODELS}
    shared = write_shared(run.work / "shared.yaml")
    separate = write_separate(run.work / "separate.yaml")

    def backlogged(url: str, models: tuple[str, ...], for_s: float) -> dict[str, float]:
        count = min(_MANY, int(for_s * 400))
        plans = {model: backlog_plan(model, rows=rows[model], count=count) for model in models}
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
        arrivals = {
            m: paced(rows[m], per_second=_LOAD * slices[m], seconds=seconds) for m in MODELS
        }
        before = _measured(platform.url, best, arrivals, seconds)
    with serve(run, shared, name="shared") as platform:
        backlogged(platform.url, MODELS, 3.0)
        ours = _measured(platform.url, best, arrivals, seconds)
    peer = _transformers(run, arrivals[CRITICAL], seconds)
    return [
        *[fact(f"- {m}: best alone (requests/s)", best[m]) for m in MODELS],
        *[fact(f"- {m}: separate, all busy (requests/s)", slices[m]) for m in MODELS],
        *[fact(f"- {m}: requests of the trace", len(arrivals[m])) for m in MODELS],
        comparison(
            "utilisation for useful work (1 = the machine at its best)",
            ours=ours.utilization,
            peer=before.utilization,
            at_least=1.4,
        ),
        comparison("- answers in time (%)", ours=100 * ours.in_time, peer=100 * before.in_time),
        comparison(
            "critical model, same arrivals: complete answer p99 (ms)",
            ours=ours.latency_ms(99),
            peer=before.latency_ms(99),
            at_least=round(1 / 0.35, 3),
            lower_is_better=True,
        ),
        *[
            comparison(
                f"critical model, same arrivals: {name} (ms)",
                ours=figure(ours, percent),
                peer=figure(before, percent),
                lower_is_better=True,
            )
            for name, figure, percent in (
                ("complete answer p50", _Figures.latency_ms, 50),
                ("first token p99", _Figures.ttft_ms, 99),
                ("first token p50", _Figures.ttft_ms, 50),
            )
        ],
        comparison(
            "same arrivals: requests answered per second, all models",
            ours=ours.per_second,
            peer=before.per_second,
            at_least=0.98,
        ),
        bound("same arrivals: requests that failed, ours", ours.num_failed, at_most=0),
        fact("- requests that failed, separate", before.num_failed),
        comparison(
            "critical model beside `transformers serve` on its own core: complete answer p99 (ms)",
            ours=ours.latency_ms(99),
            peer=peer,
            lower_is_better=True,
        ),
    ]


def _measured(
    url: str, best: dict[str, float], arrivals: dict[str, list[TraceRow]], seconds: float
) -> _Figures:
    plans = {model: bursty_plan(model, rows) for model, rows in arrivals.items()}
    served, took_s = _run(send(url, plans))
    in_time = {m: sum(is_in_time(m, r) for r in found.records) for m, found in served.items()}
    num_sent = sum(len(found.records) for found in served.values())
    num_served = sum(len(found.complete) for found in served.values())
    return _Figures(
        utilization=sum(count / best[model] for model, count in in_time.items()) / seconds,
        in_time=sum(in_time.values()) / num_sent,
        critical_ms=_latencies_ms(served[CRITICAL]),
        critical_ttft_ms=_ttfts_ms(served[CRITICAL]),
        num_served=num_served,
        seconds=took_s,
        num_failed=num_sent - num_served,
    )


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


def _ttfts_ms(served: Served) -> list[float]:
    """Return the times from when each request should have been sent to its first token."""
    return [
        1000 * (record.token_times_s[0] - record.due_s)
        for record in served.complete
        if record.token_times_s
    ]


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
