"""Replays workloads over policies, on all cores."""

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deepseek.scheduling.preloading.base import Tier
from deepseek.scheduling.preloading.simulation import TierOutcome, simulate_tiers
from deepseek.scheduling.simulation.outcome import percentile
from preloading_measures.policies import made
from preloading_measures.workloads import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one policy achieved."""

    hit_rate: float
    """Percent of the requests that found their model on the device."""
    wait_mean_s: float
    wait_p50_s: float
    wait_p99_s: float
    told_enough: float
    """Percent of the requests without a hit that waited no longer than they would have been told
    in a Retry-After."""
    told_ratio: float
    """What they were told, all together, by what they waited."""
    device_on_demand_bytes: int
    device_preloaded_bytes: int
    device_cancelled_bytes: int
    host_bytes: int
    num_cancelled: int
    hours: float
    """Of the virtual clock."""


Results = Mapping[str, Result]
"""By policy."""


def replay_all(
    workloads: Sequence[Workload], policies: Sequence[str], details: dict[str, Any]
) -> list[tuple[Workload, Results]]:
    """Return each workload with its results; everything found is added to `details`."""
    jobs = [(workload, policy) for workload in workloads for policy in policies]
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        found = iter(pool.starmap(result_of, jobs, chunksize=len(policies)))
    replayed = [(workload, {policy: next(found) for policy in policies}) for workload in workloads]
    details.setdefault("replays", []).extend(
        {**asdict(workload), "policy": policy, **asdict(result)}
        for workload, results in replayed
        for policy, result in results.items()
    )
    return replayed


def result_of(workload: Workload, policy: str) -> Result:
    """Replay one workload over one policy."""
    arrivals = workload.arrivals()
    outcome = simulate_tiers(workload.setup(), arrivals, made(policy, arrivals))
    waits_s = [request.wait_s for request in outcome.requests]
    device = outcome.moved[Tier.DEVICE]
    told_enough, told_ratio = _told(outcome)
    return Result(
        hit_rate=100 * outcome.hit_rate,
        wait_mean_s=sum(waits_s) / len(waits_s),
        wait_p50_s=percentile(waits_s, 50),
        wait_p99_s=percentile(waits_s, 99),
        told_enough=told_enough,
        told_ratio=told_ratio,
        device_on_demand_bytes=device.on_demand,
        device_preloaded_bytes=device.preloaded,
        device_cancelled_bytes=device.cancelled,
        host_bytes=outcome.moved[Tier.HOST].total,
        num_cancelled=outcome.num_cancelled,
        hours=outcome.duration_s / 3600,
    )


def _told(outcome: TierOutcome) -> tuple[float, float]:
    missed = [request for request in outcome.requests if not request.is_hit]
    if not missed:
        return 100.0, 1.0
    # A hundredth of a second is no broken promise: Retry-After is in whole ones.
    enough = sum(request.wait_s <= request.told_s + 0.01 for request in missed)
    waited_s = sum(request.wait_s for request in missed)
    told_s = sum(request.told_s for request in missed)
    return 100 * enough / len(missed), told_s / waited_s
