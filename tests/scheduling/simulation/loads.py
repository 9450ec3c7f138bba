"""Small workloads, and a device whose times can be worked out by hand."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from deepseek.core.qos import QoS
from deepseek.scheduling.simulation.outcome import ModelOutcome
from deepseek.scheduling.simulation.requests import Arrival
from deepseek.scheduling.simulation.simulator import ModelSetup, simulate
from deepseek.scheduling.simulation.step_times import StepTimes
from deepseek.telemetry.meters import ModelMeter

TIMES = StepTimes(
    fixed_s=0.01,
    per_prefill_token_s=0.0005,
    per_decoding_s=0.0008,
    per_context_token_s=1e-6,
    per_prefill_pair_s=4e-7,
)
CONSTANT = StepTimes(
    fixed_s=0.1, per_prefill_token_s=0.0, per_decoding_s=0.0, per_context_token_s=0.0
)


def poisson(count: int, *, per_second: float, seed: int = 0) -> list[Arrival]:
    draws = random.Random(seed)
    at_s = 0.0
    arrivals: list[Arrival] = []
    for _ in range(count):
        at_s += draws.expovariate(per_second)
        arrivals.append(
            Arrival(
                at_s=at_s, prompt_tokens=draws.randint(1, 200), output_tokens=draws.randint(1, 40)
            )
        )
    return arrivals


def setup(arrivals: Sequence[Arrival], **changed: Any) -> ModelSetup:
    base = ModelSetup(name="m", qos=QoS(policy="greedy"), arrivals=arrivals, times=TIMES)
    return replace(base, **changed)


def outcome_of(model: ModelSetup, **options: Any) -> ModelOutcome:
    return simulate([model], make_meter=ModelMeter, **options).models[model.name]
