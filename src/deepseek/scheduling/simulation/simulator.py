"""The simulated worker: the step loop of `deepseek.engine.step_loop` with a virtual clock.

Policies, their calls and the signals are the real ones; only the device is a formula. The same
arguments give the same outcome.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from deepseek.core.decisions import Decision
from deepseek.core.errors import ConfigurationError
from deepseek.core.load import DeviceLoad, ModelLoad
from deepseek.core.qos import QoS
from deepseek.scheduling.batching.base import NOTHING, Demand, StepLimits, StepShape
from deepseek.scheduling.batching.registry import PolicyMaker, policy_named_by
from deepseek.scheduling.sharing.base import StepPolicy
from deepseek.scheduling.sharing.registry import make_step_policy
from deepseek.scheduling.simulation.outcome import (
    ModelOutcome,
    RequestOutcome,
    SimulationOutcome,
)
from deepseek.scheduling.simulation.queues import Batch, DecoderQueue, EncoderQueue, RequestQueue
from deepseek.scheduling.simulation.requests import Arrival, SimulatedRequest
from deepseek.scheduling.simulation.step_times import StepTimes, is_usable, noise_factor

REPORT_INTERVAL_S = 0.5
DEFAULT_LIMITS = StepLimits(max_tokens=128, max_sequences=64)
"""A decoder's on a CPU."""
DEFAULT_KV_TOKENS = 2 * 1024**3 // 23_040
"""2 GiB of SmolLM2-135M's in bfloat16: 30 layers, 3 heads of 64, keys and values."""
_MAX_IDLE_STEPS = 10_000
"""Steps in a row that hold nothing: a policy that plans them would never end."""


class Meter(Protocol):
    """What `deepseek.telemetry.meters.ModelMeter` is to the worker; a sibling room's."""

    def arrived(self, now_s: float) -> None: ...
    def began(self, now_s: float, *, wait_s: float) -> None: ...
    def finished(self) -> None: ...
    def stepped(
        self, seconds: float, *, num_sequences: int, cap: int, is_failed: bool = False
    ) -> None: ...
    def read(self, now_s: float) -> Mapping[str, object]:
        """Return the fields of a `ModelLoad` that it knows."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSetup:
    """One model of a simulated device."""

    name: str
    qos: QoS
    arrivals: Sequence[Arrival]
    times: StepTimes
    limits: StepLimits = DEFAULT_LIMITS
    kv_tokens: int = DEFAULT_KV_TOKENS
    """Capacity of a decoder's KV cache."""
    is_encoder: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """What goes wrong with the device for a while, and what its sensors tell of it."""

    from_s: float
    to_s: float = math.inf
    slowdown: float = 1.0
    """Steps take so many times as long."""
    error_rate: float = 0.0
    """Part of the steps that fail."""
    memory_for_sequences: int | None = None
    """A step of more sequences finds no memory."""
    sensors: DeviceLoad | None = None
    """None: as without the disturbance."""


def simulate(
    models: Sequence[ModelSetup],
    *,
    make_meter: Callable[[float], Meter],
    make_policy: PolicyMaker = policy_named_by,
    step_policy: StepPolicy | None = None,
    max_step_s: float = 0.01,
    disturbances: Sequence[Disturbance] = (),
    sensors: DeviceLoad | None = None,
    seed: int = 0,
) -> SimulationOutcome:
    """Run the models' arrivals to their end and return what became of them.

    `make_meter`: the worker's own, `ModelMeter`. `step_policy`: None is fair share with steps
    bounded by `max_step_s` beside a reservation. `sensors`: what the device tells besides the time
    it was busy. Raises `ConfigurationError` for settings that no run can have.
    """
    return _Simulation(
        [_Model(setup, make_meter(0.0), make_policy) for setup in models],
        step_policy
        or make_step_policy("fair-share", {m.name: m.qos for m in models}, max_step_s=max_step_s),
        _Device(disturbances, sensors or DeviceLoad(), seed=seed),
    ).run()


class _Device:
    """Tells what a step takes, and what sensors show."""

    def __init__(
        self, disturbances: Sequence[Disturbance], sensors: DeviceLoad, *, seed: int
    ) -> None:
        self._disturbances = disturbances
        self._sensors = sensors
        self._random = random.Random(seed)  # noqa: S311 - reproducible noise
        self._busy_s = 0.0
        self._since_s = 0.0

    def seconds(self, times: StepTimes, shape: StepShape, now_s: float) -> float:
        """Return the time of one step, and account it."""
        seconds = times.expected_s(shape)
        if times.noise:
            seconds *= noise_factor(self._random.gauss(0.0, 1.0), noise=times.noise)
        for disturbance in self._active(now_s):
            seconds *= disturbance.slowdown
        self._busy_s += seconds
        return seconds

    def fails(self, now_s: float) -> bool:
        return any(
            disturbance.error_rate and self._random.random() < disturbance.error_rate
            for disturbance in self._active(now_s)
        )

    def finds_no_memory(self, batch: Batch, now_s: float) -> bool:
        return any(
            disturbance.memory_for_sequences is not None
            and batch.shape.num_sequences > disturbance.memory_for_sequences
            for disturbance in self._active(now_s)
        )

    def read(self, now_s: float) -> DeviceLoad:
        """Return what sensors tell, and the busy part of the time since the last reading."""
        sensors = self._sensors
        for disturbance in self._active(now_s):
            sensors = disturbance.sensors or sensors
        interval_s = now_s - self._since_s
        busy = min(1.0, self._busy_s / interval_s) if interval_s > 0 else 0.0
        self._busy_s, self._since_s = 0.0, now_s
        used = busy if sensors.utilization is None else sensors.utilization
        return replace(sensors, utilization=used, loop_utilization=busy)

    def _active(self, now_s: float) -> list[Disturbance]:
        if not self._disturbances:
            return []
        return [d for d in self._disturbances if d.from_s <= now_s < d.to_s]


class _Model:
    """One model's queue, policy and account: `deepseek.engine.hosted_model` with a formula."""

    def __init__(self, setup: ModelSetup, meter: Meter, make_policy: PolicyMaker) -> None:
        _check(setup)
        self.name = setup.name
        self.queue: RequestQueue = (
            EncoderQueue(setup.limits)
            if setup.is_encoder
            else DecoderQueue(setup.limits, kv_tokens=setup.kv_tokens)
        )
        self.times = setup.times
        self.requests = [
            SimulatedRequest(number, arrival)
            for number, arrival in enumerate(sorted(setup.arrivals, key=lambda a: a.at_s))
        ]
        self.policy = make_policy(setup.qos, setup.name, setup.limits)
        self.decisions: list[Decision] = []
        self.num_steps = 0
        self.busy_s = 0.0
        self.num_over = 0
        self._qos = setup.qos
        self._meter = meter
        self._num_taken = 0
        self._num_idle = 0

    @property
    def next_arrival_s(self) -> float:
        if self._num_taken == len(self.requests):
            return math.inf
        return self.requests[self._num_taken].sent_s

    @property
    def is_done(self) -> bool:
        return self.num_over == len(self.requests)

    def take_arrivals(self, now_s: float) -> None:
        """Queue what has been sent by now."""
        while self.next_arrival_s <= now_s:
            request = self.requests[self._num_taken]
            self._num_taken += 1
            request.arrive(now_s, ttft_s=self._qos.ttft_s, itl_s=self._qos.itl_s)
            self.queue.waiting.append(request)
            self._meter.arrived(now_s)

    def ready_at(self, now_s: float) -> float:
        """Return when the next step should start; infinite: there is nothing to do."""
        if not (self.queue.waiting or self.queue.running):
            return math.inf
        return self.policy.ready_at(self._demand(now_s))

    def step(self, device: _Device, now_s: float, *, max_step_s: float) -> float:
        """Run one step as the policy plans it; return its seconds."""
        plan = self.policy.plan(self._demand(now_s), max_step_s=max_step_s)
        if plan.refused:
            self._refuse(plan.refused, now_s)
        batch = self.queue.take(plan)
        if batch is None:
            self._note_idle()
            return 0.0
        self._num_idle = 0
        seconds = device.seconds(self.times, batch.shape, now_s)
        self.busy_s += seconds
        self.num_steps += 1
        self._account(batch, device, now_s, seconds)
        return seconds

    def report(self, device: DeviceLoad, now_s: float) -> None:
        """Let the policy take the signals."""
        self.decisions += self.policy.adjust(self._load(now_s), device, now_s=now_s)

    def outcome(self) -> ModelOutcome:
        return ModelOutcome(
            requests=[_outcome(request) for request in self.requests],
            busy_s=self.busy_s,
            num_steps=self.num_steps,
            num_preemptions=self.queue.num_preemptions,
            decisions=self.decisions,
        )

    def _demand(self, now_s: float) -> Demand:
        return Demand(now_s=now_s, waiting=self.queue.waiting, running=self.queue.running)

    def _account(self, batch: Batch, device: _Device, now_s: float, seconds: float) -> None:
        ended_s = now_s + seconds
        is_failed = device.fails(now_s)
        lacks_memory = not is_failed and device.finds_no_memory(batch, now_s)
        shape = batch.shape
        if is_failed:
            for request in self.queue.fail(batch):
                request.is_failed = True
                self._end(request, ended_s)
        elif lacks_memory:
            self.queue.take_back(batch)
            shape = NOTHING
        else:
            self._begin(batch, ended_s)
            for _ in self.queue.finish(batch, ended_s):
                self._meter.finished()
                self.num_over += 1
        self._meter.stepped(
            seconds,
            num_sequences=0 if is_failed else shape.num_sequences,
            cap=self.queue.limits.max_sequences,
            is_failed=is_failed or lacks_memory,
        )
        if not is_failed:
            self.policy.observe(shape, seconds=seconds, is_out_of_memory=lacks_memory)

    def _begin(self, batch: Batch, ended_s: float) -> None:
        for request, _ in batch.chunks:
            if not request.has_begun:
                request.has_begun = True
                self._meter.began(ended_s, wait_s=ended_s - request.arrived_s)
        for request in batch.decoding:
            if not request.has_begun:  # a prompt of one token
                request.has_begun = True
                self._meter.began(ended_s, wait_s=ended_s - request.arrived_s)

    def _refuse(self, requests: Sequence[Any], now_s: float) -> None:
        for request in self.queue.refuse(requests):
            request.is_refused = True
            self._end(request, now_s)

    def _end(self, request: SimulatedRequest, now_s: float) -> None:
        request.ended_s = now_s
        self.num_over += 1

    def _note_idle(self) -> None:
        if not (self.queue.waiting or self.queue.running):
            return  # all that waited was refused
        self._num_idle += 1
        if self._num_idle == _MAX_IDLE_STEPS:
            raise RuntimeError(f"the policy of {self.name!r} plans steps that hold nothing")

    def _load(self, now_s: float) -> ModelLoad:
        queue = self.queue
        oldest_s = min((request.arrived_s for request in queue.waiting), default=None)
        due_s = min(
            (r.due_s for requests in (queue.waiting, queue.running) for r in requests),
            default=math.inf,
        )
        return ModelLoad(
            model=self.name,
            num_waiting=len(queue.waiting),
            num_running=len(queue.running),
            kv_tokens_used=queue.kv_tokens_used,
            kv_tokens_cached=0,
            kv_tokens_capacity=queue.kv_tokens_capacity,
            num_preemptions=queue.num_preemptions,
            busy_s=self.busy_s,
            num_steps=self.num_steps,
            oldest_wait_s=None if oldest_s is None else now_s - oldest_s,
            deadline_slack_s=None if math.isinf(due_s) else due_s - now_s,
            **cast("Mapping[str, Any]", self._meter.read(now_s)),
        )


class _Simulation:
    """The step loop."""

    def __init__(self, models: Sequence[_Model], step_policy: StepPolicy, device: _Device) -> None:
        self._models = {model.name: model for model in models}
        self._policy = step_policy
        self._device = device
        self._now_s = 0.0
        self._next_report_s = REPORT_INTERVAL_S

    def run(self) -> SimulationOutcome:
        models = list(self._models.values())
        while not all(model.is_done for model in models):
            now_s = self._now_s
            for model in models:
                model.take_arrivals(now_s)
            if now_s >= self._next_report_s:
                self._report()
            ready, next_s = self._ready(models)
            if ready:
                self._step(self._models[self._policy.pick(ready)])
            else:
                # At least a little further, for a policy whose time is now but for a rounding.
                self._now_s = max(next_s, math.nextafter(now_s, math.inf))
        return SimulationOutcome(
            models={model.name: model.outcome() for model in models}, duration_s=self._now_s
        )

    def _ready(self, models: Sequence[_Model]) -> tuple[list[str], float]:
        """Return who could step now; and the time of the next event."""
        now_s = self._now_s
        next_s = self._next_report_s
        ready: list[str] = []
        for model in models:
            ready_at_s = model.ready_at(now_s)
            if ready_at_s <= now_s:
                ready.append(model.name)
            next_s = min(next_s, ready_at_s, model.next_arrival_s)
        return ready, next_s

    def _step(self, model: _Model) -> None:
        max_step_s = self._policy.max_step_s(model.name)
        seconds = model.step(self._device, self._now_s, max_step_s=max_step_s)
        self._policy.charge(model.name, seconds)
        self._now_s += seconds + model.times.between_s

    def _report(self) -> None:
        now_s = self._now_s
        self._next_report_s = now_s + REPORT_INTERVAL_S
        device = self._device.read(now_s)
        for model in self._models.values():
            model.report(device, now_s)


def _check(setup: ModelSetup) -> None:
    if not is_usable(setup.times):
        raise ConfigurationError(
            f"{setup.name}: steps that take no time; fit them to another record", param="times"
        )
    if setup.is_encoder:
        return
    longest = max((a.prompt_tokens + a.output_tokens for a in setup.arrivals), default=0)
    if longest > setup.kv_tokens:
        raise ConfigurationError(
            f"{setup.name}: a request of {longest} tokens does not fit a KV cache of "
            f"{setup.kv_tokens}; shorten the requests or enlarge the cache",
            param="kv_tokens",
        )


def _outcome(request: SimulatedRequest) -> RequestOutcome:
    first_s, ended_s = request.first_token_s, request.ended_s
    assert ended_s is not None  # noqa: S101 - the loop ends when all are over
    answered = request.num_output > 1 and first_s is not None
    return RequestOutcome(
        sent_s=request.sent_s,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        ttft_s=math.inf if first_s is None else first_s - request.sent_s,
        itl_s=(ended_s - (first_s or 0.0)) / (request.num_output - 1) if answered else 0.0,
        ended_s=ended_s,
        is_refused=request.is_refused,
        is_failed=request.is_failed,
    )
