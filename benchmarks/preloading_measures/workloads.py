"""Ten models, device memory for four, and the requests of the public traces dealt out to them.

The traces are of one model each, so somebody has to say which of ten a request is for; the answer
decides what can be foreseen at all. Both ways of dealing give the models Zipf popularity:

* `independent`: every request draws its model. What was asked for says nothing about when it will
  be asked for again, so that no policy can know more than how popular each model is.
* `streams`: each model has a tenth of the trace to itself, stretched to its popularity. Its bursts
  and pauses stay its own, as they are where each model has users of its own.

Times are stretched until a request comes every four seconds on average: a device with memory for
four of ten models is no place for a load that keeps all of them in use.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from batching_measures.workloads import (
    AZURE_CODE,
    AZURE_CONVERSATION,
    MOONCAKE_CONVERSATION,
    MOONCAKE_SYNTHETIC,
)
from frame import SHARED_DATA
from serving_measures.platform import MeasurementFailed

from deepseek.cli.load.traces import read_trace
from deepseek.scheduling.preloading.base import ModelState, Tier
from deepseek.scheduling.preloading.simulation import ModelArrival, TierSetup

NUM_MODELS, NUM_FIT = 10, 4
TRACES = {
    trace.name: trace
    for trace in (AZURE_CONVERSATION, AZURE_CODE, MOONCAKE_CONVERSATION, MOONCAKE_SYNTHETIC)
}
DEALS = ("independent", "streams")
EQUAL_GB = (16.0,) * NUM_MODELS
MIXED_GB = (16.0, 1.0, 8.0, 3.0, 30.0, 14.0, 2.0, 16.0, 0.5, 7.0)
"""A catalogue with an encoder, small and large language models, in no order of popularity."""
SIZES_GB = {"equal": EQUAL_GB, "mixed": MIXED_GB}

_DISK_GB_PER_S, _DEVICE_GB_PER_S = 5.0, 50.0
"""An NVMe disk; pinned memory over PCIe 5, measured on an H100."""
_PROMPT_TOKEN_S, _ANSWER_TOKEN_S = 0.0001, 0.01
"""An 8-billion-parameter model on such a device, a few requests beside one another."""
_GB = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What to replay; picklable, and small."""

    trace: str
    deal: str
    sizes: str = "equal"
    skew: float = 1.0
    """Zipf's exponent."""
    num_requests: int
    gap_s: float = 4.0
    """Mean time between two requests."""
    host_part: float = 1.0
    """Memory of the host tier as a part of all models' bytes; 1: begins with all of them there."""
    preload_speed: float = 1.0
    preloads_while_busy: bool = True

    @property
    def name(self) -> str:
        return f"{self.trace}, {self.deal}, {self.sizes} sizes"

    def setup(self) -> TierSetup:
        """Return the tiers, nothing on the device."""
        held = frozenset({Tier.HOST}) if self.host_part >= 1 else frozenset()
        models = [
            _model(f"m{rank}", gigabytes, held=held)
            for rank, gigabytes in enumerate(SIZES_GB[self.sizes])
        ]
        total = sum(model.device_bytes for model in models)
        return TierSetup(
            models=models,
            budgets={
                Tier.DEVICE: total * NUM_FIT // NUM_MODELS,
                Tier.HOST: int(total * self.host_part),
            },
            preload_speed=self.preload_speed,
            preloads_while_busy=self.preloads_while_busy,
        )

    def arrivals(self) -> list[ModelArrival]:
        """Return the requests in order."""
        deal = _independent if self.deal == "independent" else _streams
        return deal(self)


@dataclass(frozen=True, slots=True)
class _Recorded:
    at_s: float
    service_s: float


@cache
def _recorded(trace: str) -> Sequence[_Recorded]:
    chosen = TRACES[trace]
    path = SHARED_DATA / "traces" / chosen.file
    if not path.exists():
        raise MeasurementFailed(f"{path} is not there: the public traces are needed")
    draws = random.Random(0)  # noqa: S311 - the same moments in every run
    requests = (
        _Recorded(
            row.arrival_s + draws.uniform(0, chosen.resolution_s),
            _PROMPT_TOKEN_S * row.input_tokens + _ANSWER_TOKEN_S * row.output_tokens,
        )
        for row in read_trace(path)
    )
    return sorted(requests, key=lambda request: request.at_s)


def _independent(workload: Workload) -> list[ModelArrival]:
    requests = _recorded(workload.trace)[: workload.num_requests]
    draws = random.Random(1)  # noqa: S311 - the same models in every run
    weights = list(itertools.accumulate(_zipf(workload.skew)))
    models = draws.choices(range(NUM_MODELS), cum_weights=weights, k=len(requests))
    start_s = requests[0].at_s
    stretch = workload.gap_s * len(requests) / (requests[-1].at_s - start_s)
    return [
        ModelArrival(
            at_s=(request.at_s - start_s) * stretch, model=f"m{rank}", service_s=request.service_s
        )
        for request, rank in zip(requests, models, strict=True)
    ]


def _streams(workload: Workload) -> list[ModelArrival]:
    requests = _recorded(workload.trace)
    tenth = len(requests) // NUM_MODELS
    parts = []
    for rank, share in enumerate(_zipf(workload.skew)):
        count = min(tenth, max(2, round(share * workload.num_requests)))
        parts.append(requests[rank * tenth : rank * tenth + count])
    span_s = workload.gap_s * sum(len(part) for part in parts)
    arrivals = [
        ModelArrival(
            at_s=(request.at_s - part[0].at_s) * span_s / (part[-1].at_s - part[0].at_s),
            model=f"m{rank}",
            service_s=request.service_s,
        )
        for rank, part in enumerate(parts)
        for request in part
    ]
    return sorted(arrivals, key=lambda arrival: arrival.at_s)


def _zipf(skew: float) -> list[float]:
    weights = [(rank + 1) ** -skew for rank in range(NUM_MODELS)]
    return [weight / sum(weights) for weight in weights]


def _model(name: str, gigabytes: float, *, held: frozenset[Tier]) -> ModelState:
    return ModelState(
        name=name,
        host_bytes=int(gigabytes * _GB),
        device_bytes=int(gigabytes * _GB),
        host_s=gigabytes / _DISK_GB_PER_S,
        device_s=gigabytes / _DEVICE_GB_PER_S,
        held=held,
    )
