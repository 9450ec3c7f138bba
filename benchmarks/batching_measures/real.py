"""The real engine behind its HTTP server, beside the simulator, on the same segment of a trace.

The server's worker has one core to itself; the gateway and the open-loop client share the other.
Step times are fitted to the run's own step record, so that the simulator is asked about the machine
as it was in that minute; which load is full, and which fixed pairs are best, it says beforehand.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvloop
import yaml
from engine_measures.placement import one_core, running_on
from frame import Row, fact
from serving_measures.platform import MeasurementFailed, Run, RunningPlatform, serve

from batching_measures.engine_record import MODEL, SETTINGS
from batching_measures.simulated import attainment_row, best_of, result_of
from batching_measures.step_fit import stored_times
from batching_measures.workloads import (
    AZURE_CODE,
    AZURE_CONVERSATION,
    FIXED,
    GREEDY,
    ITL_S,
    OURS,
    POLICIES,
    TTFT_S,
    Trace,
    arrivals_of,
    setup_of,
)
from deepseek.cli.http_client import HttpClient
from deepseek.cli.load.answer import RequestRecord
from deepseek.cli.load.plan import LoadPlan, LoadTask, trace_requests
from deepseek.cli.load.probe import probe
from deepseek.cli.load.prompts import TokenScale
from deepseek.cli.load.runner import run_load
from deepseek.cli.load.traces import TraceRow
from deepseek.core.qos import QoS
from deepseek.scheduling.simulation.capacity import at_rate, capacity
from deepseek.scheduling.simulation.requests import Arrival
from deepseek.scheduling.simulation.simulator import ModelSetup, simulate
from deepseek.scheduling.simulation.step_times import (
    StepTimes,
    StepTiming,
    fit_step_times,
    read_step_record,
)
from deepseek.telemetry.meters import ModelMeter

_LOADS = (0.8, 1.2)
_SKIP_ROWS = 1000
_WARM_UP_REQUESTS = 24
_WARM_UP_S = 20.0
"""Enough for the requests that warm up, which all come at once."""
_LEAST_PROMPT_TOKENS = 40
"""The chat template takes some; a shorter prompt of the trace becomes this long, in both."""
_DIFFERENCE = 3.0
_TOLERANCE, _GAIN = 0.5, 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """One policy on one segment; percentages in time."""

    real: float
    simulated: float
    fit_error: float
    num_failed: int


def real(run: Run, *, details: dict[str, Any]) -> list[Row]:
    """Return the rows of both traces at both loads."""
    rows: list[Row] = []
    details["real"] = found = {}
    for trace in (AZURE_CONVERSATION, AZURE_CODE):
        for load in _LOADS:
            segment = _segment(trace, load=load, seconds=run.count(60, 10))
            results = {name: result_of(_simulated_setup(segment), name) for name in POLICIES}
            first = best_of(results, FIXED)
            second = best_of(results, [name for name in FIXED if name != first])
            place = f"{trace.name}, load {load:g}"
            rows.append(fact(f"- {place}: requests", len(segment)))
            seen = {
                name: _measure(run, segment, policy=name) for name in (OURS, GREEDY, first, second)
            }
            rows += _rows(place, load, seen)
            found[place] = {name: [one.real, one.simulated] for name, one in seen.items()}
    return rows


def _rows(place: str, load: float, seen: dict[str, _Seen]) -> list[Row]:
    rows = [
        Row(
            measure=f"{place}, {name}: real in time (%), and simulated "
            f"(fit error {100 * one.fit_error:.0f} %)",
            ours=round(one.real, 2),
            peer=round(one.simulated, 2),
            target=f"peer +-{_DIFFERENCE:g}",
            holds=abs(one.real - one.simulated) <= _DIFFERENCE and one.num_failed == 0,
        )
        for name, one in seen.items()
    ]
    others = [name for name in seen if name != OURS]
    judged = [name for name in others if name != GREEDY] if load >= 1 else others
    best = max(judged, key=lambda name: seen[name].real)
    rows.append(
        attainment_row(
            f"{place}: real in time (%), best of the others: {best}",
            seen[OURS].real,
            peer=seen[best].real,
            at_least=_GAIN if load >= 1 else -_TOLERANCE,
        )
    )
    return rows


# the segment


def _segment(trace: Trace, *, load: float, seconds: float) -> list[TraceRow]:
    """Return rows that come within so many seconds at this part of full load."""
    count = 4000
    while True:
        rows = [
            replace(row, input_tokens=max(_LEAST_PROMPT_TOKENS, row.input_tokens))
            for row in trace.rows(skip=_SKIP_ROWS, count=count)
        ]
        arrivals = arrivals_of(rows)
        full_per_s = capacity(
            setup_of(arrivals, qos=POLICIES[GREEDY], times=stored_times()), make_meter=ModelMeter
        )
        fitting = int(load * full_per_s * seconds)
        if abs(fitting - count) <= 0.02 * count:
            paced = at_rate(arrivals, load * full_per_s)
            return [
                replace(row, arrival_s=arrival.at_s)
                for row, arrival in zip(rows, paced, strict=True)
            ]
        count = max(16, fitting)


def _simulated_setup(segment: Sequence[TraceRow]) -> ModelSetup:
    return setup_of(arrivals_of(segment), qos=POLICIES[GREEDY], times=stored_times())


# the engine


def _measure(run: Run, segment: Sequence[TraceRow], *, policy: str) -> _Seen:
    record = run.work / "steps.jsonl"
    record.unlink(missing_ok=True)
    file = _write(run.work / "real.yaml", POLICIES[policy], record)
    with serve(run, file, name="real") as platform:
        _leave_the_servers_core(platform)
        with (
            running_on(one_core().client_cores),
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            warm_up, sent = runner.run(_send(platform.url, segment))
    with record.open("rb") as lines:
        steps = read_step_record(lines, model=MODEL)
    steps = [step for step in steps if step.t >= warm_up[0].sent_s]  # not the probe's
    fit = fit_step_times(steps)
    reused = _reused_tokens([*warm_up, *sent], steps)
    arrivals = [
        *(
            _as_seen(one, row, at_s=0.0, reused=reused)
            for one, row in zip(warm_up, segment, strict=False)
        ),
        *(
            _as_seen(one, row, at_s=_WARM_UP_S + row.arrival_s, reused=reused)
            for one, row in zip(sent, segment, strict=True)
        ),
    ]
    return _Seen(
        real=100 * sum(_is_in_time(one) for one in sent) / len(sent),
        simulated=_in_time(arrivals, POLICIES[policy], fit.times, skip=len(warm_up)),
        fit_error=fit.mape,
        num_failed=sum(one.error is not None for one in sent),
    )


def _reused_tokens(records: Sequence[RequestRecord], steps: Sequence[StepTiming]) -> float:
    """Return the prompt tokens per request that no step computed.

    The chat template's beginning is every prompt's, and the prefix cache has it; the simulator
    knows no prefixes.
    """
    given = sum(record.input_tokens or 0 for record in records)
    return max(0.0, given - sum(step.prefill for step in steps)) / len(records)


def _as_seen(record: RequestRecord, row: TraceRow, *, at_s: float, reused: float) -> Arrival:
    """Return a request as the server counted it."""
    prompt_tokens = max(1, round((record.input_tokens or row.input_tokens) - reused))
    return Arrival(at_s=at_s, prompt_tokens=prompt_tokens, output_tokens=row.output_tokens)


def _in_time(arrivals: Sequence[Arrival], qos: QoS, times: StepTimes, *, skip: int) -> float:
    outcome = simulate([setup_of(arrivals, qos=qos, times=times)], make_meter=ModelMeter)
    judged = outcome.models[MODEL].requests[skip:]
    in_time = sum(one.is_in_time(ttft_s=TTFT_S, itl_s=ITL_S) for one in judged)
    return 100 * in_time / len(judged)


async def _send(
    url: str, segment: Sequence[TraceRow]
) -> tuple[Sequence[RequestRecord], Sequence[RequestRecord]]:
    """Send what warms up, and then the segment."""
    with HttpClient(url, timeout_s=60.0) as client:
        scale = await probe(client, task="chat", model=MODEL)
    first = [replace(row, arrival_s=0.0) for row in segment[:_WARM_UP_REQUESTS]]
    # Other words than the segment's: what the prefix cache kept of these must not help.
    warm_up = await run_load(_plan(first, scale, label=-1_000_000), url=url, model=MODEL)
    report = await run_load(_plan(segment, scale, label=0), url=url, model=MODEL)
    return warm_up.records, report.records


def _plan(rows: Sequence[TraceRow], scale: TokenScale, *, label: int) -> LoadPlan:
    own = [replace(row, prefix_blocks=(label - 1 - number,)) for number, row in enumerate(rows)]
    return LoadPlan(
        requests=trace_requests(own, scale=scale),
        task=LoadTask.CHAT,
        extra_body={"temperature": 0, "ignore_eos": True},
    )


def _is_in_time(record: RequestRecord) -> bool:
    """Judge from when the request should have been sent: a late client hides nothing."""
    if record.error is not None or not record.token_times_s or not record.output_tokens:
        return False
    first_s = record.token_times_s[0]
    gaps = max(1, record.output_tokens - 1)
    itl_s = (record.token_times_s[-1] - first_s) / gaps
    return first_s - record.due_s <= TTFT_S and itl_s <= ITL_S


def _leave_the_servers_core(platform: RunningPlatform) -> None:
    """Move the gateway's threads to the client's core; the worker is where its pool says."""
    client_cores = one_core().client_cores
    for thread in platform.gateway.threads():
        os.sched_setaffinity(thread.id, client_cores)
    worker = platform.worker()
    if worker is None or set(worker.cpu_affinity()) != set(one_core().server_cores):
        raise MeasurementFailed("the worker does not have the server's core to itself")


def _write(path: Path, qos: QoS, record: Path) -> Path:
    cores = ",".join(map(str, sorted(one_core().server_cores)))
    settings: dict[str, Any] = {
        "policy": qos.policy,
        "minBatchSize": qos.min_batch_size,
        "maxWaitTime": qos.max_wait_s,
        "deadline": {"ttft": qos.ttft_s, "itl": qos.itl_s},
    }
    if qos.max_batch_size is not None:
        settings["maxBatchSize"] = qos.max_batch_size
    content = {
        "models": {MODEL: {**SETTINGS, "qos": settings}},
        "pools": {
            "default": {
                "device": "cpu",
                "cpus": cores,
                "num_threads": 1,
                "step_record": str(record),
            }
        },
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path
