"""What steps take: the simulator's fit, the policies' own estimate, and what deciding costs."""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from frame import RESULTS, Row, bound, fact
from serving_measures.platform import MeasurementFailed, Run

from batching_measures.engine_record import record_steps
from deepseek.core.qos import QoS
from deepseek.scheduling.batching.base import BatchingPolicy, Demand, StepShape
from deepseek.scheduling.batching.registry import make_batching_policy
from deepseek.scheduling.batching.step_time import StepTimeEstimator
from deepseek.scheduling.simulation.outcome import percentile
from deepseek.scheduling.simulation.simulator import DEFAULT_LIMITS
from deepseek.scheduling.simulation.step_times import (
    StepTimes,
    StepTiming,
    fit_step_times,
)

STORED_TIMES = RESULTS / "batching_step_times.json"
"""The last fit of a full run, which the other measures simulate with."""
_MAX_ERROR = 0.10
_LEARNED_AFTER = 200
_RELEARNED_AFTER = 50
_JUDGED_STEPS = 150
"""After a slow-down, and after the steps in which it is to be learned."""
_SLOWDOWN = 1.6
_NUM_SLOWDOWNS = 8
_MAX_DECISION_US = 200.0
_QUEUED, _RUNNING = 256, 48


def step_fit(run: Run) -> list[Row]:
    """Record the real engine, fit, and follow the record with the policies' estimator."""
    record = record_steps(run)
    fit = fit_step_times(record)
    if not run.quick:
        STORED_TIMES.write_text(json.dumps(asdict(fit.times), indent=2) + "\n", encoding="utf-8")
    errors = _errors(record)
    again = _errors_after_slowdowns(record)
    return [
        fact("- steps recorded", len(record)),
        fact("- a step: fixed (ms)", 1e3 * fit.times.fixed_s),
        fact("- per prompt token (ms)", 1e3 * fit.times.per_prefill_token_s),
        fact("- per decoding sequence (ms)", 1e3 * fit.times.per_decoding_s),
        fact("- per 1000 tokens of context (ms)", 1e6 * fit.times.per_context_token_s),
        fact("- per 1000 pairs of prompt tokens (ms)", 1e6 * fit.times.per_prefill_pair_s),
        fact("- spread (standard deviation of the logarithm)", fit.times.noise),
        fact("- between two steps (ms)", 1e3 * fit.times.between_s),
        bound("simulator's fit: error of held-out steps (%)", 100 * fit.mape, at_most=10),
        bound(
            f"online estimator: error after {_LEARNED_AFTER} steps (%)",
            100 * statistics.fmean(errors[_LEARNED_AFTER:])
            if len(errors) > _LEARNED_AFTER
            else float("nan"),
            at_most=100 * _MAX_ERROR,
        ),
        bound(
            f"online estimator: error from {_RELEARNED_AFTER} steps after a {_SLOWDOWN}x "
            "slow-down (%)",
            100 * again,
            at_most=100 * _MAX_ERROR,
        ),
        *_decision_cost(record, num_calls=run.count(4000, 400)),
    ]


def stored_times() -> StepTimes:
    """Return what the last full run of `fit` found."""
    if not STORED_TIMES.exists():
        raise MeasurementFailed(f"{STORED_TIMES.name} is not there: run `--only fit` first")
    return StepTimes(**json.loads(STORED_TIMES.read_text(encoding="utf-8")))


def _errors(record: Sequence[StepTiming], *, slow_from: int | None = None) -> list[float]:
    """Return the error of each step's prediction, made before the step was seen."""
    estimator = StepTimeEstimator()
    errors: list[float] = []
    for number, step in enumerate(record):
        is_slow = slow_from is not None and number >= slow_from
        seconds = step.s * (_SLOWDOWN if is_slow else 1.0)
        expected_s = estimator.predict(
            prefill=step.prefill,
            decoding=step.decoding,
            context=step.context,
            depth=step.pairs / max(1, step.prefill),
        )
        errors.append(abs(expected_s - seconds) / seconds)
        estimator.observe(step.shape, seconds)
    return errors


def _errors_after_slowdowns(record: Sequence[StepTiming]) -> float:
    """Return the mean error once a slow-down should be known, over several places of it."""
    last = len(record) - _RELEARNED_AFTER - _JUDGED_STEPS
    if last <= _LEARNED_AFTER:
        return float("nan")  # a quick run's record is too short to tell
    places = range(_LEARNED_AFTER, last, max(1, (last - _LEARNED_AFTER) // _NUM_SLOWDOWNS))
    found: list[float] = []
    for place in places:
        first = place + _RELEARNED_AFTER
        found += _errors(record[: first + _JUDGED_STEPS], slow_from=place)[first:]
    return statistics.fmean(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Queued:
    """A request for the policies to look at."""

    id: int
    arrived_s: float
    due_s: float
    num_pending: int
    num_computed: int


def _decision_cost(record: Sequence[StepTiming], *, num_calls: int) -> list[Row]:
    rows: list[Row] = []
    for name in ("slack", "greedy", "fixed", "aimd", "step-up"):
        qos = QoS(policy=name, ttft_s=1.0, itl_s=0.1, max_wait_s=0.2, min_batch_size=8)
        policy = make_batching_policy(name, "chat", qos, DEFAULT_LIMITS)
        for step in record[:_LEARNED_AFTER]:
            policy.observe(step.shape, seconds=step.s)
        took_us = _timed(policy, num_calls)
        measure = f"decision with {_QUEUED} waiting, {_RUNNING} running, {name}"
        rows += [
            fact(f"- {measure}: p50 (us)", percentile(took_us, 50)),
            bound(f"{measure}: p99 (us)", percentile(took_us, 99), at_most=_MAX_DECISION_US),
        ]
    return rows


def _timed(policy: BatchingPolicy, num_calls: int) -> list[float]:
    """Return the microseconds of `ready_at` and `plan` together, the queue another each time."""
    shape = StepShape(
        num_prefill_tokens=64,
        num_decoding=_RUNNING,
        num_context_tokens=9000,
        num_sequences=50,
        num_prefill_pairs=6400,
    )
    took_us: list[float] = []
    for number in range(num_calls):
        demand = _demand(100.0 + 0.05 * number, seed=number)
        started_ns = time.perf_counter_ns()
        policy.ready_at(demand)
        policy.plan(demand, max_step_s=float("inf"))
        took_us.append((time.perf_counter_ns() - started_ns) / 1000)
        policy.observe(shape, seconds=0.05)
    return took_us


def _demand(now_s: float, *, seed: int) -> Demand:
    waiting = [
        _Queued(
            id=number,
            arrived_s=now_s - 0.004 * (_QUEUED - number),
            due_s=now_s - 0.004 * (_QUEUED - number) + 1.0,
            num_pending=16 + (37 * (number + seed)) % 240,
            num_computed=0,
        )
        for number in range(_QUEUED)
    ]
    running = [
        _Queued(
            id=_QUEUED + number,
            arrived_s=now_s - 2.0,
            due_s=now_s + 0.02 + 0.001 * ((number + seed) % 80),
            num_pending=1,
            num_computed=40 + (91 * number) % 500,
        )
        for number in range(_RUNNING)
    ]
    return Demand(now_s=now_s, waiting=waiting, running=running)
