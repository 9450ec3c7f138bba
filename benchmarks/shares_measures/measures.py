"""The three measures: everybody busy, the critical model at part of its load, and idle."""

import numpy as np
from frame import Row, bound, comparison, fact
from headline_measures.workload import Served
from serving_measures.platform import MeasurementFailed, Run

from shares_measures.device import (
    CRITICAL,
    MODELS,
    OTHERS,
    PROMISED,
    arrivals,
    backlogs,
    serve_device,
)

_MARGIN_S = 1.0
"""What is left out at both ends of a time: there, not everybody is busy."""
_LOAD = 0.6
"""Mean rate of the critical model's arrivals as a part of what it can serve alone."""


def busy(run: Run) -> list[Row]:
    """Keep all four models busy; return the critical one's part of the device."""
    seconds = float(run.count(60, 8))
    parts: dict[str, tuple[float, float, float]] = {}
    for policy in ("fair-share", "round-robin"):
        with serve_device(run, name=policy, step_policy=policy) as device:
            device.send("busy", backlogs(MODELS, for_s=seconds), stop_after_s=seconds)
        steps = device.steps("busy", margin_s=_MARGIN_S)
        worst = steps.worst_window(CRITICAL, window_s=1.0)
        parts[policy] = (steps.part(CRITICAL), worst, steps.longest_s(without=CRITICAL))
        if policy == "fair-share":
            facts = [fact(f"- all busy: part of {m} (%)", 100 * steps.part(m)) for m in OTHERS]
    (part, worst, longest_s), (peer_part, peer_worst, _) = parts.values()
    return [
        _percent("all busy: critical model's part of device time (%)", part, peer_part, PROMISED),
        _percent("all busy: its part of the worst second (%)", worst, peer_worst, 0.88),
        *facts,
        fact("- all busy: longest step of another model (ms)", 1000 * longest_s),
    ]


def loaded(run: Run) -> list[Row]:
    """Send the critical model 60 % of what it can serve, alone and beside busy others."""
    seconds = float(run.count(60, 8))
    short_s = float(run.count(15, 4))
    with serve_device(run, name="loaded") as device:
        served = device.send("best", backlogs([CRITICAL], for_s=short_s), stop_after_s=short_s)
        per_second = _LOAD * served[CRITICAL].per_second(short_s)
        plan = arrivals(CRITICAL, per_second=per_second, seconds=seconds)
        alone = device.send("alone", {CRITICAL: plan})
        # The others stop with the last arrival: what is still answered after it counts too.
        busy_others = backlogs(OTHERS, for_s=seconds)
        beside = device.send("beside", {CRITICAL: plan} | busy_others, stop_after_s=seconds + 5.0)
    unanswered = len(plan.requests) - len(beside[CRITICAL].complete)
    start_s, _ = device.spans["beside"]
    device.spans["beside"] = (start_s, start_s + seconds)
    steps = device.steps("beside", margin_s=_MARGIN_S)
    wall_s = seconds - 2 * _MARGIN_S
    left_s = wall_s - steps.seconds(CRITICAL)
    used_s = steps.seconds() - steps.seconds(CRITICAL)
    latency_ms, alone_ms = _latency_ms(beside[CRITICAL], 99), _latency_ms(alone[CRITICAL], 99)
    return [
        fact("- critical model at 60 %: requests per second", per_second),
        comparison(
            "critical model at 60 %: latency p99 beside the others, and alone (ms)",
            ours=latency_ms,
            peer=alone_ms,
            at_least=0.8,
            lower_is_better=True,
        ),
        comparison(
            "- critical model at 60 %: latency p50 beside the others, and alone (ms)",
            ours=_latency_ms(beside[CRITICAL], 50),
            peer=_latency_ms(alone[CRITICAL], 50),
            lower_is_better=True,
        ),
        bound("critical model at 60 %: unanswered requests", unanswered, at_most=0),
        bound("the others' part of what is left (%)", 100 * used_s / left_s, at_least=90),
        fact("- critical model's part of the time (%)", 100 * steps.seconds(CRITICAL) / wall_s),
    ]


def idle(run: Run) -> list[Row]:
    """Send the critical model nothing; return how much of the time the others use."""
    seconds = float(run.count(30, 6))
    with serve_device(run, name="idle") as device:
        device.send("idle", backlogs(OTHERS, for_s=seconds), stop_after_s=seconds)
    steps = device.steps("idle", margin_s=_MARGIN_S)
    used = steps.seconds() / (seconds - 2 * _MARGIN_S)
    return [
        bound("critical model idle: the others' part of the time (%)", 100 * used, at_least=97),
        *[fact(f"- idle: part of {m} (%)", 100 * steps.part(m)) for m in OTHERS],
    ]


def _percent(measure: str, ours: float, peer: float, at_least: float) -> Row:
    row = bound(measure, 100 * ours, at_least=100 * at_least)
    return Row(
        measure=f"{measure}; round-robin",
        ours=row.ours,
        peer=float(f"{100 * peer:.4g}"),
        target=row.target,
        holds=row.holds,
    )


def _latency_ms(served: Served, percent: float) -> float:
    """Return the time from when a request should have been sent to its complete answer."""
    found = [1000 * (record.done_s - record.due_s) for record in served.complete]
    if not found:
        raise MeasurementFailed("no request of the critical model was answered")
    return float(np.percentile(found, percent))
