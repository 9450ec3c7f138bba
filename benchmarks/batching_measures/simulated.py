"""Every policy on every trace at every load, simulated, on all cores."""

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from frame import Row, fact
from serving_measures.platform import Run

from batching_measures.reachable import most_in_time
from batching_measures.step_fit import stored_times
from batching_measures.workloads import (
    AIMD,
    FIXED,
    GREEDY,
    ITL_S,
    OURS,
    POLICIES,
    TRACES,
    TTFT_S,
    Trace,
    arrivals_of,
    setup_of,
)
from deepseek.scheduling.simulation.capacity import at_rate, capacity
from deepseek.scheduling.simulation.simulator import ModelSetup, simulate
from deepseek.telemetry.meters import ModelMeter

LOADS = (0.5, 0.8, 1.0, 1.2)
_LIGHT, _HEAVY = (0.5, 0.8), (1.0, 1.2)
_TOLERANCE = 0.5
_GAIN = 10.0
_DEVICE_TIME = 0.85
_LEAST_ATTAINMENT = 99.5
_QUICK_ROWS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one policy achieved."""

    attainment: float
    """Percent."""
    busy_s: float
    utilization: float
    ttft_p50_s: float
    ttft_p99_s: float
    num_steps: int


Results = Mapping[str, Result]
"""By policy."""


def simulated(run: Run, *, details: dict[str, Any]) -> list[Row]:
    """Return the rows of all traces."""
    times = stored_times()
    rows: list[Row] = []
    found: list[dict[str, Any]] = []
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        for trace in TRACES:
            workload = arrivals_of(trace.rows(count=_QUICK_ROWS if run.quick else None))
            setup = setup_of(workload, qos=POLICIES[OURS], times=times)
            full_per_s = capacity(setup, make_meter=ModelMeter)
            rows.append(fact(f"- {trace.name}: capacity (requests/s)", full_per_s))
            for load in LOADS:
                loaded = replace(setup, arrivals=at_rate(workload, load * full_per_s))
                results = dict(
                    zip(POLICIES, pool.map(partial(result_of, loaded), POLICIES), strict=True)
                )
                reachable = most_in_time(loaded.arrivals, times, loaded.limits)
                rows += _rows(trace, load, results, reachable=reachable)
                found += [
                    {"trace": trace.name, "load": load, "policy": name, **asdict(result)}
                    for name, result in results.items()
                ]
    details["simulated"] = found
    return rows


def result_of(setup: ModelSetup, policy: str) -> Result:
    """Simulate one of `POLICIES`."""
    outcome = simulate([replace(setup, qos=POLICIES[policy])], make_meter=ModelMeter)
    model = outcome.models[setup.name]
    return Result(
        attainment=100 * model.attainment(ttft_s=TTFT_S, itl_s=ITL_S),
        busy_s=model.busy_s,
        utilization=outcome.utilization,
        ttft_p50_s=model.ttft_percentile(50),
        ttft_p99_s=model.ttft_percentile(99),
        num_steps=model.num_steps,
    )


def best_of(results: Results, names: Sequence[str]) -> str:
    """Return the name of the policy with the most answers in time."""
    return max(names, key=lambda name: results[name].attainment)


def attainment_row(measure: str, ours: float, *, peer: float, at_least: float) -> Row:
    """Return a row that holds where ours is `at_least` so many points above the peer."""
    return Row(
        measure=measure,
        ours=round(ours, 2),
        peer=round(peer, 2),
        target=f"peer {at_least:+g}",
        holds=ours >= peer + at_least,
    )


def _rows(trace: Trace, load: float, results: Results, *, reachable: float) -> list[Row]:
    place = f"{trace.name}, load {load:g}"
    ours = results[OURS]
    bound = Row(
        measure=f"- {place}: in time (%), no policy can have more than",
        ours=round(ours.attainment, 2),
        peer=round(reachable, 2),
    )
    if load in _HEAVY:
        best = best_of(results, FIXED)
        return [
            bound,
            attainment_row(
                f"{place}: in time (%), best of 12 fixed: {best}",
                ours.attainment,
                peer=results[best].attainment,
                at_least=_GAIN,
            ),
            Row(
                measure=f"- {place}: in time (%), {GREEDY}",
                ours=round(ours.attainment, 2),
                peer=round(results[GREEDY].attainment, 2),
            ),
        ]
    best = best_of(results, (GREEDY, AIMD, *FIXED))
    rows = [
        bound,
        attainment_row(
            f"{place}: in time (%), best of all others: {best}",
            ours.attainment,
            peer=results[best].attainment,
            at_least=-_TOLERANCE,
        ),
    ]
    if load == _LIGHT[0]:
        rows.append(_device_time(place, ours, results[GREEDY], reachable=reachable))
    return rows


def _device_time(place: str, ours: Result, greedy: Result, *, reachable: float) -> Row:
    """Return the row; it says where its attainment is out of every policy's reach."""
    part = ours.busy_s / greedy.busy_s
    measure = f"{place}: device time as a part of {GREEDY}'s ({ours.attainment:.2f} % in time)"
    if reachable < _LEAST_ATTAINMENT:
        measure += f"; no policy could have more than {reachable:.1f} %"
    return Row(
        measure=measure,
        ours=round(part, 3),
        peer=1.0,
        target=f"<= {_DEVICE_TIME:g}, >= {_LEAST_ATTAINMENT:g} % in time",
        holds=part <= _DEVICE_TIME and ours.attainment >= _LEAST_ATTAINMENT,
    )
