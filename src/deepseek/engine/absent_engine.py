"""Stands in for the engine of a model that is not in memory: requests wait in it."""

import time
from dataclasses import dataclass

from deepseek.core.load import ModelLoad
from deepseek.core.qos import QoS
from deepseek.core.requests import EncodeRequest
from deepseek.engine.base import Output, Request, StepReport, num_sequences
from deepseek.scheduling.batching.base import Demand, StepLimits, StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingRequest:
    """A request as it came; a `QueuedRequest` to those who ask what waits."""

    request: Request
    arrived_s: float
    due_s: float
    num_pending: int
    num_computed: int = 0

    @property
    def id(self) -> int:
        return self.request.id


class AbsentEngine:
    """Implements `deepseek.engine.base.Engine` for a model that cannot be stepped."""

    limits = StepLimits(max_tokens=1, max_sequences=1)
    last_step: StepReport | None = None
    has_work = False

    def __init__(self, name: str) -> None:
        self.name = name
        self._waiting: dict[int, WaitingRequest] = {}
        self._qos = QoS()

    @property
    def oldest_s(self) -> float | None:
        """When the first of those that wait came; None: nobody waits."""
        return next((waiting.arrived_s for waiting in self._waiting.values()), None)

    def expect(self, qos: QoS) -> None:
        """Give requests added from now on these deadlines."""
        self._qos = qos

    def add(self, request: Request, *, now_s: float | None = None) -> None:
        """Keep a request; what is wrong with it the engine will find that takes it."""
        arrived_s = time.monotonic() if now_s is None else now_s
        self._waiting[request.id] = WaitingRequest(
            request=request,
            arrived_s=arrived_s,
            due_s=arrived_s + self._qos.ttft_s,
            num_pending=_num_tokens(request),
        )

    def abort(self, request_id: int) -> None:
        """Forget a request."""
        self._waiting.pop(request_id, None)

    def take_waiting(self) -> list[WaitingRequest]:
        """Return what waits, in order of arrival, and keep nothing of it."""
        waiting, self._waiting = list(self._waiting.values()), {}
        return waiting

    def demand(self, now_s: float) -> Demand:
        """Show what waits."""
        return Demand(now_s=now_s, waiting=list(self._waiting.values()), running=())

    def step(self, plan: StepPlan | None = None) -> list[Output]:
        """Do nothing: there is never work that a step would do."""
        return []

    def settle(self) -> None:
        """Do nothing."""

    def fail_running(self) -> list[int]:
        """Return nothing: no step took anybody along."""
        return []

    def load(self) -> ModelLoad:
        """Count what waits."""
        return ModelLoad(
            model=self.name,
            num_waiting=sum(num_sequences(w.request) for w in self._waiting.values()),
            num_running=0,
            kv_tokens_used=0,
            kv_tokens_cached=0,
            kv_tokens_capacity=0,
        )

    def close(self) -> None:
        """Forget what waits."""
        self._waiting.clear()


def _num_tokens(request: Request) -> int:
    if isinstance(request, EncodeRequest):
        return sum(map(len, request.sequences))
    return len(request.prompt_token_ids)
