"""What each signal is for: every one made unknown in turn, where the device or the load misbehaves.

A signal's effect is told in two ways. *Decisions*: the run's own steps and reports are given once
more to a fresh policy, which does not see the signal; what it decides otherwise is the signal's own
work. *In time*: the whole run again without the signal, and what became of its requests. A signal
that changes no decision in any scenario is a defect.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from frame import Row
from serving_measures.platform import Run

from batching_measures.step_fit import stored_times
from batching_measures.workloads import (
    AZURE_CODE,
    AZURE_CONVERSATION,
    ITL_S,
    OURS,
    POLICIES,
    TTFT_S,
    Trace,
    arrivals_of,
    setup_of,
)
from deepseek.core.decisions import Decision
from deepseek.core.load import DeviceLoad, ModelLoad
from deepseek.core.qos import QoS
from deepseek.scheduling.batching.base import (
    BatchingPolicy,
    Demand,
    StepPlan,
    StepShape,
)
from deepseek.scheduling.batching.registry import policy_named_by
from deepseek.scheduling.simulation.capacity import at_rate, capacity
from deepseek.scheduling.simulation.simulator import Disturbance, ModelSetup, simulate
from deepseek.telemetry.meters import ModelMeter

_HEALTHY = DeviceLoad(
    memory_used_bytes=8 << 30,
    memory_total_bytes=16 << 30,
    memory_bandwidth_utilization=0.5,
    temperature_c=60.0,
    is_throttled=False,
    power_w=60.0,
    power_limit_w=100.0,
    clock_mhz=3000.0,
    clock_max_mhz=3000.0,
)
_NO_BITS = replace(_HEALTHY, is_throttled=None)
_NO_CLOCK = replace(_HEALTHY, clock_mhz=None, clock_max_mhz=None)

Reports = tuple[ModelLoad, DeviceLoad]
Mask = Callable[[ModelLoad, DeviceLoad], Reports]


def _of_model(**unknown: Any) -> Mask:
    return lambda load, device: (replace(load, **unknown), device)


def _of_device(*names: str) -> Mask:
    return lambda load, device: (load, replace(device, **dict.fromkeys(names)))


SIGNALS: dict[str, Mask] = {
    # Counts are never unknown: without them nothing waits, and one runs.
    "queue length": _of_model(num_waiting=0),
    "running sequences": _of_model(num_running=1),
    "KV cache use": _of_model(kv_tokens_capacity=0),
    "oldest wait": _of_model(oldest_wait_s=None),
    "wait p99": _of_model(wait_p99_s=None),
    "arrival rate": _of_model(arrival_rate=None),
    "service rate": _of_model(service_rate=None),
    "batch occupancy": _of_model(batch_occupancy=None),
    "step time": _of_model(step_time_s=None),
    "error rate": _of_model(error_rate=None),
    "deadline slack": _of_model(deadline_slack_s=None),
    "device utilisation": _of_device("utilization"),
    "step loop utilisation": _of_device("loop_utilization"),
    "memory use": _of_device("memory_used_bytes", "memory_total_bytes"),
    "memory bandwidth": _of_device("memory_bandwidth_utilization"),
    "temperature": _of_device("temperature_c"),
    "throttling": _of_device("is_throttled"),
    "power": _of_device("power_w", "power_limit_w"),
    "clock": _of_device("clock_mhz", "clock_max_mhz"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A load, and what happens to the device under it."""

    name: str
    load: float
    trace: Trace = AZURE_CONVERSATION
    part: float = 1.0
    """Of the requests that others take."""
    sensors: DeviceLoad = _HEALTHY
    disturbance: Disturbance | None = None
    """Its times are parts of the run."""
    kv_tokens: int | None = None


def _scenarios() -> Iterator[Scenario]:
    yield Scenario(name="hardly any load", load=0.02, part=0.2)
    yield Scenario(name="idle for minutes", load=0.002, part=0.04)
    yield Scenario(name="half load", load=0.5)
    yield Scenario(name="bursts", load=0.8, trace=AZURE_CODE)
    yield Scenario(name="overload", load=1.3)
    slower = Disturbance(from_s=0.3, to_s=0.6, slowdown=1.6)
    yield Scenario(
        name="a lower clock",
        load=0.85,
        sensors=_NO_BITS,
        disturbance=replace(slower, sensors=replace(_NO_BITS, clock_mhz=1900.0)),
    )
    yield Scenario(
        name="throttling, no clock known",
        load=0.85,
        sensors=_NO_CLOCK,
        disturbance=replace(slower, sensors=replace(_NO_CLOCK, is_throttled=True)),
    )
    yield Scenario(
        name="hot, not throttled yet",
        load=0.8,
        disturbance=_sensing(temperature_c=90.0),
    )
    yield Scenario(name="at the power limit", load=0.8, disturbance=_sensing(power_w=99.0))
    yield Scenario(name="KV pressure", load=0.95, kv_tokens=3000)
    yield Scenario(
        name="memory nearly full",
        load=0.9,
        disturbance=_sensing(memory_used_bytes=int(15.9 * 2**30)),
    )
    yield Scenario(
        name="out of memory, then bandwidth full",
        load=1.1,
        disturbance=replace(_sensing(memory_bandwidth_utilization=0.97), memory_for_sequences=12),
    )
    yield Scenario(
        name="failing steps",
        load=0.9,
        disturbance=Disturbance(from_s=0.3, to_s=0.5, error_rate=0.2),
    )


def _sensing(**changed: Any) -> Disturbance:
    return Disturbance(from_s=0.3, to_s=0.7, sensors=replace(_HEALTHY, **changed))


def ablation(run: Run, *, details: dict[str, Any]) -> list[Row]:
    """Return a row per signal."""
    count = run.count(1500, 300)
    changed: dict[str, dict[str, int]] = {signal: {} for signal in SIGNALS}
    lost: dict[str, dict[str, float]] = {signal: {} for signal in SIGNALS}
    for scenario in _scenarios():
        setup = _setup(scenario, count=int(count * scenario.part))
        whole = _Watched(_policy_of(setup))
        in_time = _attainment(setup, scenario, whole)
        for signal, mask in SIGNALS.items():
            replayed = whole.replayed(mask, fresh=_policy_of(setup))
            others = _different(replayed, whole.decisions)
            if others:
                changed[signal][scenario.name] = others
                blind = _attainment(setup, scenario, _Watched(_policy_of(setup), mask))
                lost[signal][scenario.name] = round(blind - in_time, 2)
    details["ablation"] = {
        signal: {
            name: {"decisions": number, "in_time_points": lost[signal][name]}
            for name, number in scenarios.items()
        }
        for signal, scenarios in changed.items()
    }
    return [_row(signal, changed[signal], lost[signal]) for signal in SIGNALS]


def _row(signal: str, changed: dict[str, int], lost: dict[str, float]) -> Row:
    effect = ""
    if changed:
        most = max(changed, key=changed.__getitem__)
        worst = min(lost, key=lost.__getitem__)
        effect = f" (most in {most!r}; in time {lost[worst]:+.2f} points in {worst!r})"
    return Row(
        measure=f"without {signal}: decisions that differ{effect}",
        ours=sum(changed.values()),
        target=">= 1",
        holds=sum(changed.values()) >= 1,
    )


def _setup(scenario: Scenario, *, count: int) -> ModelSetup:
    workload = arrivals_of(scenario.trace.rows(count=count))
    setup = setup_of(workload, qos=POLICIES[OURS], times=stored_times())
    full_per_s = capacity(setup, make_meter=ModelMeter)
    return replace(
        setup,
        arrivals=at_rate(workload, scenario.load * full_per_s),
        kv_tokens=scenario.kv_tokens or setup.kv_tokens,
    )


def _policy_of(setup: ModelSetup) -> BatchingPolicy:
    return policy_named_by(setup.qos, setup.name, setup.limits)


def _attainment(setup: ModelSetup, scenario: Scenario, policy: BatchingPolicy) -> float:
    """Return the percentage of requests in time."""
    end_s = setup.arrivals[-1].at_s
    disturbances = [
        replace(one, from_s=one.from_s * end_s, to_s=one.to_s * end_s)
        for one in (scenario.disturbance,)
        if one is not None
    ]
    outcome = simulate(
        [setup],
        make_meter=ModelMeter,
        make_policy=lambda qos, model, limits: policy,
        disturbances=disturbances,
        sensors=scenario.sensors,
    )
    return 100 * outcome.models[setup.name].attainment(ttft_s=TTFT_S, itl_s=ITL_S)


@dataclass(slots=True)
class _Watched:
    """A policy whose steps and reports are kept, and whose reports lack what `mask` takes out."""

    policy: BatchingPolicy
    mask: Mask | None = None
    decisions: list[list[Decision]] = field(default_factory=list)
    _calls: list[Callable[[BatchingPolicy, Mask | None], list[Decision] | None]] = field(
        default_factory=list
    )

    def replayed(self, mask: Mask, *, fresh: BatchingPolicy) -> list[list[Decision]]:
        """Return what a fresh policy decides on the same steps and the masked reports."""
        results = (call(fresh, mask) for call in self._calls)
        return [decisions for decisions in results if decisions is not None]

    def ready_at(self, demand: Demand) -> float:
        return self.policy.ready_at(demand)

    def plan(self, demand: Demand, *, max_step_s: float) -> StepPlan:
        return self.policy.plan(demand, max_step_s=max_step_s)

    def observe(self, shape: StepShape, *, seconds: float, is_out_of_memory: bool = False) -> None:
        def call(policy: BatchingPolicy, mask: Mask | None) -> None:
            policy.observe(shape, seconds=seconds, is_out_of_memory=is_out_of_memory)

        call(self.policy, None)
        self._calls.append(call)

    def adjust(self, load: ModelLoad, device: DeviceLoad, *, now_s: float) -> list[Decision]:
        def call(policy: BatchingPolicy, mask: Mask | None) -> list[Decision]:
            seen = (load, device) if mask is None else mask(load, device)
            return policy.adjust(*seen, now_s=now_s)

        decisions = call(self.policy, self.mask)
        self._calls.append(call)
        self.decisions.append(decisions)
        return decisions

    def reconfigure(self, qos: QoS) -> None:
        self.policy.reconfigure(qos)


def _different(some: list[list[Decision]], others: list[list[Decision]]) -> int:
    """Return how many reports led to other actions; which signals are named does not count."""
    return sum(
        [d.action for d in one] != [d.action for d in other]
        for one, other in zip(some, others, strict=True)
    )
