"""Models of one worker that take turns on a GPU, by way of the host tier."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from deepseek.core.requests import GenerateRequest, SamplingParams, Task
from deepseek.core.residency import Residency
from deepseek.core.wire import ModelSpec, TokenDelta, WorkerSpec
from deepseek.serving.replica import Replica, RestartPolicy

_PROMPT_TOKENS = 64
_ROUNDS = 8
_STREAM_TOKENS = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class TakingTurns:
    """What requests for models that were parked have waited for, and what others noticed."""

    load_s: float
    """From disk, once, with the host copy."""
    first_token_s: list[float]
    """From the request, which crosses the process, to its first token; another model has to leave
    the device first."""
    beside_stream_s: list[float]
    """The same while a third model streams."""
    usual_gap_s: float
    """Between two tokens of that stream, at the median, while nothing moves."""
    longest_gap_s: float
    """The longest one while a model is woken, at the median of the rounds."""


async def take_turns(directory: Path, *, model_bytes: int) -> TakingTurns:
    """Serve one model directory under three names, of which two have room for one."""
    async with _worker(directory, model_bytes=model_bytes) as worker:
        started_s = time.perf_counter()
        await worker.first_token("a")
        load_s = time.perf_counter() - started_s
        await worker.first_token("b")
        turns = ["a", "b"] * (_ROUNDS // 2)
        alone = [await worker.woken(name) for name in turns]
        usual = statistics.median(await worker.gaps(_STREAM_TOKENS))
        beside: list[float] = []
        longest: list[float] = []
        for name in turns:
            streaming = asyncio.create_task(worker.gaps(_STREAM_TOKENS))
            await asyncio.sleep(0.1)
            beside.append(await worker.woken(name))
            longest.append(max(await streaming))
        return TakingTurns(
            load_s=load_s,
            first_token_s=alone,
            beside_stream_s=beside,
            usual_gap_s=usual,
            longest_gap_s=statistics.median(longest),
        )


class _Worker:
    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._num_requests = 0

    async def woken(self, model: str) -> float:
        """Return the seconds to the first token of a model that is parked."""
        if self._replica.residency(model) is not Residency.HOST:
            raise RuntimeError(f"{model} is {self._replica.residency(model)}, not in the host tier")
        return await self.first_token(model)

    async def first_token(self, model: str) -> float:
        started_s = time.perf_counter()
        times = [when async for when in self._tokens(model, 1)]
        return times[0] - started_s

    async def gaps(self, num_tokens: int) -> list[float]:
        """Return the seconds between the tokens of the model that stays."""
        times = [when async for when in self._tokens("stays", num_tokens)]
        return [later - earlier for earlier, later in pairwise(times)]

    async def _tokens(self, model: str, num_tokens: int) -> AsyncIterator[float]:
        self._num_requests += 1
        first = 2 + self._num_requests  # no prefix is shared
        request = GenerateRequest(
            id=self._replica.next_id(),
            model=model,
            prompt_token_ids=list(range(first, first + _PROMPT_TOKENS)),
            sampling=SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True),
        )
        async for answer in self._replica.stream(request):
            if isinstance(answer, TokenDelta):
                yield time.perf_counter()


@asynccontextmanager
async def _worker(directory: Path, *, model_bytes: int) -> AsyncIterator[_Worker]:
    spec = WorkerSpec(
        pool="gpu",
        socket_path="",
        device="cuda",
        models=[
            ModelSpec(
                name=name,
                path=str(directory),
                task=Task.GENERATE,
                dtype="bfloat16",
                max_model_len=4096,
                min_resident=min_resident,
            )
            for name, min_resident in (("stays", 1), ("a", 0), ("b", 0))
        ],
        kv_cache_bytes=6 * 1024**3,
        weights_bytes=int(2.2 * model_bytes),
        host_weights_bytes=int(2.2 * model_bytes),
        max_step_tokens=8192,
        max_running=16,
    )
    replica = Replica(spec, RestartPolicy())
    await replica.start()
    try:
        yield _Worker(replica)
    finally:
        await replica.stop(grace_s=5)
