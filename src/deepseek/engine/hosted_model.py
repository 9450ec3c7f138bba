"""One model of a worker: its engine, the policy that batches for it, and its account.

Engines come and go with their weights (`deepseek.engine.residency`); the account, and what the
policy has learned, stay.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from deepseek.core.decisions import Decision
from deepseek.core.errors import DeadlineUnreachable, DeepseekError
from deepseek.core.load import DeviceLoad, ModelLoad
from deepseek.core.qos import QoS
from deepseek.core.wire import Encoded, Failed, TokenDelta
from deepseek.engine.absent_engine import AbsentEngine, WaitingRequest
from deepseek.engine.base import (
    Engine,
    Output,
    Prepares,
    Request,
    StepReport,
    WarmUp,
    num_sequences,
)
from deepseek.scheduling.batching.base import BatchingPolicy, Demand, QueuedRequest
from deepseek.scheduling.batching.registry import PolicyMaker, policy_named_by
from deepseek.telemetry.meters import ModelMeter


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What came of one step of one model."""

    outputs: list[Output]
    report: StepReport | None
    """None: nothing was given to the device."""


class HostedModel:
    """Lives in the step loop's thread; every call says what time it is."""

    def __init__(
        self,
        engine: Engine,
        policy: BatchingPolicy | None,
        meter: ModelMeter,
        *,
        qos: QoS,
        make_policy: PolicyMaker = policy_named_by,
        adapters: Mapping[str, str] | None = None,
    ) -> None:
        """`make_policy` makes another policy, where other settings name one; and the first, where
        there is none yet (None) when an engine takes its first step. `adapters`: see the attribute.
        """
        self.engine = engine
        self.qos = qos
        self._policy = policy
        self._make_policy = make_policy
        self._meter = meter
        self.busy_s = 0.0
        """Device time used."""
        self.num_steps = 0
        self.used_s = -math.inf
        """When a request came or a step ended."""
        self.num_readers = 0
        """Who reads something for the engine meanwhile (an adapter): it is not to be exchanged."""
        self.adapters = dict(adapters or {})
        """Names and paths of the LoRA adapters that every engine of the model is to have."""
        self._refuse_s = 1.0
        self._is_warm = False
        engine.expect(qos)

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def is_resident(self) -> bool:
        """False while there is no engine: requests wait."""
        return not isinstance(self.engine, AbsentEngine)

    @property
    def is_in_use(self) -> bool:
        """True while the engine cannot be done without."""
        return self.engine.has_work or self.num_readers > 0

    @property
    def is_being_prepared(self) -> bool:
        """True while leaving now would make the next load as long as this one was."""
        return isinstance(self.engine, Prepares) and self.engine.is_being_prepared

    @property
    def waiting_since_s(self) -> float | None:
        """When the first request came that waits for an engine."""
        return self.engine.oldest_s if isinstance(self.engine, AbsentEngine) else None

    def take(self, engine: Engine) -> list[Failed]:
        """Go on with an engine that has been loaded; return what it refuses of all that waited."""
        waiting = self._take_waiting()
        self.engine = engine
        engine.expect(self.qos)
        refused: list[Failed] = []
        for waited in waiting:
            try:
                engine.add(waited.request, now_s=waited.arrived_s)
            except DeepseekError as error:
                refused.append(Failed(waited.id, error.code, error.message, error.param))
        return refused

    def release(self) -> Engine:
        """Go on without an engine; return the one there was. To be called while it has no work."""
        engine, self.engine = self.engine, AbsentEngine(self.name)
        self.engine.expect(self.qos)
        self._is_warm = False
        return engine

    def give_up_waiting(self, error: DeepseekError) -> list[Failed]:
        """Return the answers to all that wait for an engine."""
        return [Failed(w.id, error.code, error.message, error.param) for w in self._take_waiting()]

    def _take_waiting(self) -> list[WaitingRequest]:
        return self.engine.take_waiting() if isinstance(self.engine, AbsentEngine) else []

    @property
    def can_warm_up(self) -> bool:
        """True while `warm_up` would do something."""
        return not self._is_warm and isinstance(self.engine, WarmUp)

    def warm_up(self) -> None:
        """Have the engine do, once, what the first request of some kind would wait for."""
        if not self._is_warm and isinstance(self.engine, WarmUp):
            self.engine.warm_up()
        self._is_warm = True

    def add(self, request: Request, *, now_s: float) -> None:
        """Queue a request; raises as `Engine.add`."""
        self.engine.add(request, now_s=now_s)
        self.used_s = now_s
        for _ in range(num_sequences(request)):
            self._meter.arrived(now_s)

    def ready_at(self, now_s: float) -> float | None:
        """Return when the next step should start; None: there is nothing to do."""
        if not self.engine.has_work:
            return None
        demand = self.engine.demand(now_s)
        if demand.is_in_flight or not (demand.waiting or demand.running):
            return now_s
        return self._batching.ready_at(demand)

    def step(self, now_s: float, *, max_step_s: float) -> StepResult:
        """Run one step as the policy plans it; raises what the engine raises."""
        plan = self._batching.plan(self.engine.demand(now_s), max_step_s=max_step_s)
        outputs: list[Output] = []
        if plan.refused:
            outputs += self._refuse(plan.refused)
        outputs += self.engine.step(plan)
        return StepResult(outputs=outputs, report=self.engine.last_step)

    def settle(self, now_s: float) -> bool:
        """Wait for what the device still does for this model; return whether there was any."""
        if not self.engine.demand(now_s).is_in_flight:
            return False
        self.engine.settle()
        return True

    def account_settled(self, *, seconds: float) -> None:
        """Count device time that passed beyond this model's last step."""
        self.busy_s += seconds

    def account(self, result: StepResult, *, seconds: float, now_s: float) -> None:
        """Learn from a step that took `seconds` and ended at `now_s`."""
        self._charge(seconds)
        self.used_s = now_s
        for output in result.outputs:
            for _ in range(_num_finished(output)):
                self._meter.finished()
        report = result.report
        if report is None:
            return
        for wait_s in report.waits_s:
            self._meter.began(now_s, wait_s=wait_s)
        self._meter.stepped(
            seconds,
            num_sequences=report.shape.num_sequences,
            cap=self.engine.limits.max_sequences,
            is_failed=report.found_no_memory,
        )
        self._batching.observe(
            report.shape, seconds=seconds, is_out_of_memory=report.found_no_memory
        )

    def fail(self, *, seconds: float) -> list[int]:
        """Account for a step that failed; return the ids of the requests that went with it."""
        self._charge(seconds)
        self._meter.stepped(
            seconds, num_sequences=0, cap=self.engine.limits.max_sequences, is_failed=True
        )
        return self.engine.fail_running()

    def load(self, now_s: float) -> ModelLoad:
        """Return the model's signals."""
        demand = self.engine.demand(now_s)
        oldest_s = min((request.arrived_s for request in demand.waiting), default=None)
        return replace(
            self.engine.load(),
            busy_s=self.busy_s,
            num_steps=self.num_steps,
            oldest_wait_s=None if oldest_s is None else max(0.0, now_s - oldest_s),
            deadline_slack_s=_least_slack(demand),
            **self._meter.read(now_s),
        )

    def adjust(self, load: ModelLoad, device: DeviceLoad, *, now_s: float) -> list[Decision]:
        """Let the policy take the signals; return what it decided."""
        if self._policy is None or not self.is_resident:
            return []  # what waits for a load says nothing about batches
        rate = load.service_rate
        self._refuse_s = 1.0 if not rate else min(60.0, max(1.0, load.num_waiting / rate))
        return self._policy.adjust(load, device, now_s=now_s)

    def reconfigure(self, qos: QoS) -> None:
        """Take new settings from the next step on; requests keep the deadlines they came with.

        What has been learned stays, unless another policy is named.
        """
        if qos.policy != self.qos.policy:
            self._policy = None
        elif self._policy is not None:
            self._policy.reconfigure(qos)
        self.qos = qos
        self.engine.expect(qos)

    @property
    def _batching(self) -> BatchingPolicy:
        if self._policy is None:
            self._policy = self._make_policy(self.qos, self.name, self.engine.limits)
        return self._policy

    def _charge(self, seconds: float) -> None:
        self.busy_s += seconds
        self.num_steps += 1

    def _refuse(self, requests: Sequence[QueuedRequest]) -> list[Output]:
        outputs: list[Output] = []
        for request_id in dict.fromkeys(request.id for request in requests):
            self.engine.abort(request_id)
            outputs.append(
                Failed(
                    request_id,
                    DeadlineUnreachable.code,
                    f"model {self.name!r} is overloaded: the request could not have been answered "
                    "by its deadline",
                    retry_after_s=self._refuse_s,
                )
            )
        return outputs


def _least_slack(demand: Demand) -> float | None:
    due_s = min(
        (r.due_s for queue in (demand.waiting, demand.running) for r in queue), default=None
    )
    if due_s is None or math.isinf(due_s):
        return None
    return due_s - demand.now_s


def _num_finished(output: Output) -> int:
    """Return how many requests (an encoder's: sequences) were served to their end."""
    match output:
        case TokenDelta():
            return int(output.finish_reason is not None)
        case Encoded():
            return output.num_rows
        case Failed():
            return 0
