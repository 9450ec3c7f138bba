"""The measures: what preloading gains, where its bounds are, and what its parts are worth."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from frame import Row, bound, comparison, fact
from serving_measures.platform import Run

from deepseek.scheduling.preloading.simulation import simulate_tiers
from preloading_measures.policies import LRU, ORACLE, OURS, POPULARITY, made
from preloading_measures.replays import Result, Results, replay_all
from preloading_measures.variants import VARIANTS
from preloading_measures.workloads import DEALS, SIZES_GB, TRACES, Workload

_GOAL = 80.0
"""Percent of the requests that are to find their model on the device."""
_OF_REACHABLE = 0.97
"""Part of what known popularity reaches, where the goal is beyond that."""
_COMPARED = (OURS, LRU, "gdsf", "lru-foreseen", POPULARITY, ORACLE)
_FULL, _QUICK = 1500, 300
_SKEWS = (0.8, 1.0, 1.2, 1.5, 2.0)
_GAPS_S = (1.0, 2.0, 4.0, 16.0, 60.0)

Details = dict[str, Any]


def hit_rate(run: Run, *, details: Details) -> list[Row]:
    """Replay every trace, dealt in both ways to models of equal and of mixed sizes."""
    workloads = [
        Workload(trace=trace, deal=deal, sizes=sizes, num_requests=run.count(_FULL, _QUICK))
        for trace in TRACES
        for deal in DEALS
        for sizes in SIZES_GB
    ]
    rows: list[Row] = []
    for workload, results in replay_all(workloads, _COMPARED, details):
        rows += _hit_rows(workload, results)
    return rows


def skew(run: Run, *, details: Details) -> list[Row]:
    """Say from which popularity on the goal is in reach of those who do not see the future."""
    base = Workload(
        trace="azure conversation", deal="independent", num_requests=run.count(_FULL, _QUICK)
    )
    workloads = [replace(base, skew=value) for value in _SKEWS]
    return [
        _goal(f"{w.name}, Zipf {w.skew:g}", results)
        for w, results in replay_all(workloads, (OURS, LRU, POPULARITY), details)
    ]


def pace(run: Run, *, details: Details) -> list[Row]:
    """Replay the trace with the longest pauses at several rates."""
    base = Workload(trace="azure code", deal="streams", num_requests=run.count(_FULL, _QUICK))
    workloads = [replace(base, gap_s=value) for value in _GAPS_S]
    return [
        _beyond_lru(f"{w.name}, a request every {w.gap_s:g} s", results)
        for w, results in replay_all(workloads, (OURS, LRU), details)
    ]


def limits(run: Run, *, details: Details) -> list[Row]:
    """Hold preloading back: to a part of the bandwidth, to idle time, to a small host tier."""
    base = Workload(
        trace="azure conversation", deal="independent", num_requests=run.count(_FULL, _QUICK)
    )
    workloads = {
        "at a tenth of the speed": replace(base, preload_speed=0.1),
        "at three tenths of the speed": replace(base, preload_speed=0.3),
        "only while nothing runs": replace(base, preloads_while_busy=False),
        "host memory for seven": replace(base, host_part=0.7),
        "host memory for five": replace(base, host_part=0.5),
    }
    found = replay_all(list(workloads.values()), (OURS, LRU, "gdsf"), details)
    rows: list[Row] = []
    for words, (workload, results) in zip(workloads, found, strict=True):
        rows.append(_beyond_lru(f"{workload.name}, {words}", results))
        rows.append(_mean_wait(results))
    return rows


def retry(run: Run, *, details: Details) -> list[Row]:
    """Compare what those who waited would have been told with how long they waited."""
    workloads = [
        Workload(trace=trace, deal="streams", sizes="mixed", num_requests=run.count(_FULL, _QUICK))
        for trace in TRACES
    ]
    rows: list[Row] = []
    for workload, results in replay_all(workloads, (OURS,), details):
        ours = results[OURS]
        rows += [
            bound(
                f"{workload.name}: Retry-After, all together, by what was waited",
                ours.told_ratio,
                at_least=0.8,
                at_most=1.25,
            ),
            fact("- waited no longer than told (%)", ours.told_enough),
        ]
    return rows


def ablation(run: Run, *, details: Details) -> list[Row]:
    """Replay the variants that were not taken."""
    count = run.count(_FULL, _QUICK)
    workloads = [
        Workload(trace="azure code", deal="streams", num_requests=count),
        Workload(trace="azure code", deal="streams", sizes="mixed", num_requests=count),
        Workload(trace="azure conversation", deal="independent", sizes="mixed", num_requests=count),
    ]
    rows: list[Row] = []
    for workload, results in replay_all(workloads, tuple(VARIANTS), details):
        rows += [
            fact(
                f"- {workload.name}: {variant}, hits (%); mean wait {1000 * r.wait_mean_s:.0f} ms, "
                f"{_terabytes(r):.1f} TB to the device",
                r.hit_rate,
            )
            for variant, r in results.items()
        ]
    return rows


def cost(run: Run, *, details: Details) -> list[Row]:
    """Time the policy's own work for one request, at the wall clock."""
    workload = Workload(
        trace="azure conversation", deal="independent", num_requests=run.count(_FULL, _QUICK)
    )
    arrivals = workload.arrivals()
    policy = made(OURS, arrivals)
    watched = _Timed(policy)
    simulate_tiers(workload.setup(), arrivals, watched)
    mean_us = 1e6 * watched.seconds / watched.num_calls
    details["cost"] = {"mean_us": mean_us, "num_calls": watched.num_calls}
    return [bound("a call of the policy, ten models (us)", mean_us, at_most=1000)]


class _Timed:
    """A policy and the time that its calls take."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self.seconds = 0.0
        self.num_calls = 0

    def observe(self, model: str, *, now_s: float) -> None:
        """Forward and time."""
        begun_s = time.perf_counter()
        self._policy.observe(model, now_s=now_s)
        self._ended(begun_s)

    def next_action(self, residency: Any, *, now_s: float) -> Any:
        """Forward and time."""
        begun_s = time.perf_counter()
        action = self._policy.next_action(residency, now_s=now_s)
        self._ended(begun_s)
        return action

    def _ended(self, begun_s: float) -> None:
        self.seconds += time.perf_counter() - begun_s
        self.num_calls += 1


def _hit_rows(workload: Workload, results: Results) -> list[Row]:
    ours, lru = results[OURS], results[LRU]
    rows = [_beyond_lru(workload.name, results), _goal(workload.name, results)]
    rows += [
        fact(f"- {name}: hits (%)", results[name].hit_rate)
        for name in ("gdsf", "lru-foreseen", POPULARITY, ORACLE)
    ]
    return [
        *rows,
        _mean_wait(results),
        Row(
            measure="- wait for the model p50; p99 (ms) (LRU)",
            ours=_percentiles(ours),
            peer=_percentiles(lru),
        ),
        Row(
            measure="- copied to the device on demand; ahead; in vain (TB) (LRU)",
            ours=_copied(ours),
            peer=_copied(lru),
        ),
    ]


def _beyond_lru(place: str, results: Results) -> Row:
    ours, lru = results[OURS].hit_rate, results[LRU].hit_rate
    return Row(
        measure=f"{place}: hits (%) (LRU)",
        ours=round(ours, 1),
        peer=round(lru, 1),
        target="> LRU",
        holds=ours > lru,
    )


def _goal(place: str, results: Results) -> Row:
    """Return whether the goal is met; where known popularity is below it, how near that ours is.

    Where requests are dealt independently, nobody who does not see the future has more.
    """
    ours, reachable = results[OURS].hit_rate, results[POPULARITY].hit_rate
    if max(ours, reachable) < _GOAL:
        return Row(
            measure=f"{place}: hits (%) (known popularity has less than {_GOAL:g})",
            ours=round(ours, 1),
            peer=round(reachable, 1),
            ratio=round(ours / reachable, 3),
            target=f">= {_OF_REACHABLE:g}x",
            holds=ours >= _OF_REACHABLE * reachable,
        )
    return bound(f"{place}: hits (%)", round(ours, 1), at_least=_GOAL)


def _mean_wait(results: Results) -> Row:
    return comparison(
        "- wait for the model, mean of all requests (ms) (LRU)",
        ours=1000 * results[OURS].wait_mean_s,
        peer=1000 * results[LRU].wait_mean_s,
        lower_is_better=True,
    )


def _percentiles(result: Result) -> str:
    return f"{1000 * result.wait_p50_s:.0f}; {1000 * result.wait_p99_s:.0f}"


def _copied(result: Result) -> str:
    parts: Sequence[int] = (
        result.device_on_demand_bytes,
        result.device_preloaded_bytes,
        result.device_cancelled_bytes,
    )
    return "; ".join(f"{part / 1e12:.1f}" for part in parts)


def _terabytes(result: Result) -> float:
    copied = result.device_on_demand_bytes + result.device_preloaded_bytes
    return (copied + result.device_cancelled_bytes) / 1e12
