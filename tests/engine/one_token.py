"""An engine that answers at once, for tests of what goes on around engines."""

import time

from deepseek.core.load import ModelLoad
from deepseek.core.qos import QoS
from deepseek.core.requests import GenerateRequest, SamplingParams
from deepseek.core.wire import Generate, TokenDelta
from deepseek.engine.base import Engine, Output, Request, StepReport
from deepseek.engine.hosted_model import HostedModel
from deepseek.scheduling.batching.base import Demand, StepLimits, StepPlan
from deepseek.scheduling.batching.registry import make_batching_policy
from deepseek.telemetry.meters import ModelMeter


class OneTokenEngine:
    """Answers every request with one token in one step."""

    name = "plain"

    def __init__(self) -> None:
        self._waiting: list[int] = []

    limits = StepLimits(max_tokens=8, max_sequences=8)
    last_step: StepReport | None = None

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    def expect(self, qos: QoS) -> None:
        """Answers come at once."""

    def demand(self, now_s: float) -> Demand:
        return Demand(now_s=now_s, waiting=(), running=())

    def add(self, request: Request, *, now_s: float | None = None) -> None:
        self._waiting.append(request.id)

    def abort(self, request_id: int) -> None:
        self._waiting.remove(request_id)

    def step(self, plan: StepPlan | None = None) -> list[Output]:
        waiting, self._waiting = self._waiting, []
        return [TokenDelta(request_id, [7], "length") for request_id in waiting]

    def fail_running(self) -> list[int]:
        return []

    def load(self) -> ModelLoad:
        return ModelLoad(
            model=self.name,
            num_waiting=0,
            num_running=0,
            kv_tokens_used=0,
            kv_tokens_cached=0,
            kv_tokens_capacity=0,
        )

    def close(self) -> None:
        self._waiting.clear()


def hosted(engine: Engine) -> HostedModel:
    qos = QoS()
    policy = make_batching_policy("slack", engine.name, qos, engine.limits)
    return HostedModel(engine, policy, ModelMeter(time.monotonic()), qos=qos)


def one_token(request_id: int, model: str) -> Generate:
    sampling = SamplingParams(max_tokens=1)
    request = GenerateRequest(
        id=request_id, model=model, prompt_token_ids=[1], sampling=sampling, adapter=None
    )
    return Generate([request])
