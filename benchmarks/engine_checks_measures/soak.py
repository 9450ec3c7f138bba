"""A hundred thousand short requests, many of them given up: does anything stay behind?"""

import asyncio
import random
import time
from contextlib import aclosing
from dataclasses import dataclass

from frame import Row, bound, fact
from serving_measures.platform import MeasurementFailed, Run

from deepseek.core.load import LoadSnapshot
from deepseek.core.requests import GenerateRequest, SamplingParams
from deepseek.engine.settings import PoolSettings
from deepseek.serving.replica import Replica
from deepseek.serving.settings import ModelSettings
from engine_checks_measures.families import write_tiny_model
from engine_checks_measures.worker import running

_MODEL = "tiny"
_CONCURRENCY = 96
_STUCK_S = 60.0
_GROWTH_LIMIT_PERCENT = 5.0
_MIB = 2**20
# Less memory than 64 sequences of these lengths take: blocks are evicted and sequences preempted.
_POOL = PoolSettings(device="cpu", num_threads=1, kv_cache_bytes=_MIB, max_running=64)


@dataclass(slots=True)
class _Seen:
    """What became of the requests."""

    complete: int = 0
    given_up: int = 0
    stuck: int = 0
    wrong_length: int = 0


def soak(run: Run) -> list[Row]:
    """Send requests of random lengths and give every third up; compare memory before and after."""
    return asyncio.run(_soak(run))


async def _soak(run: Run) -> list[Row]:
    path = write_tiny_model("llama", run.work / "soak")
    models = {_MODEL: ModelSettings(source=str(path), dtype="float32")}
    num_warm_up, count = run.count(20_000, 2_000), run.count(100_000, 2_000)
    async with running(models, pool=_POOL) as (_, replica):
        pid = replica.pid
        start = await _idle(replica)
        await _send_many(replica, num_warm_up, seed="warm")
        before = await _idle(replica)
        started_s = time.perf_counter()
        seen = await _send_many(replica, count, seed="measured")
        seconds = time.perf_counter() - started_s
        after = await _idle(replica)
        restarts = int(replica.pid != pid)
    load, growth = after.models[0], 100 * (after.rss_bytes / before.rss_bytes - 1)
    sizes = " > ".join(f"{s.rss_bytes / _MIB:.0f}" for s in (start, before, after))
    about = f"{count} short requests"
    return [
        bound(f"{about}: stuck for {_STUCK_S:g} s", seen.stuck, at_most=0),
        bound(f"{about}: answers of a wrong length", seen.wrong_length, at_most=0),
        bound(f"{about}: left running or waiting", load.num_running + load.num_waiting, at_most=0),
        bound(f"{about}: KV tokens still in use", load.kv_tokens_used, at_most=0),
        bound(f"{about}: restarts of the worker", restarts, at_most=0),
        bound(
            f"{about}: growth of the worker's resident memory (%)",
            growth,
            at_most=_GROWTH_LIMIT_PERCENT,
        ),
        fact(f"- at start, after {num_warm_up} to warm up, afterwards (MiB)", sizes),
        fact("- answered in full, given up", f"{seen.complete}, {seen.given_up}"),
        fact("- preempted", load.num_preemptions),
        fact("- requests per second", count / seconds),
    ]


async def _send_many(replica: Replica, count: int, *, seed: str) -> _Seen:
    rng = random.Random(seed)  # noqa: S311 - no secret
    seen = _Seen()
    numbers = iter(range(count))

    async def take_turns() -> None:
        for _ in numbers:
            await _send(replica, rng, seen)

    async with asyncio.TaskGroup() as group:
        for _ in range(_CONCURRENCY):
            group.create_task(take_turns())
    return seen


async def _send(replica: Replica, rng: random.Random, seen: _Seen) -> None:
    """Ask for a short answer; every third request is given up before it is complete."""
    max_tokens = rng.choice((1, 2, 3, 5, 8, 13))
    patience = rng.randrange(max_tokens) if rng.random() < 1 / 3 else None
    prompt = [rng.randrange(500) for _ in range(rng.choice((1, 3, 8, 20, 45)))]
    request = GenerateRequest(
        id=replica.next_id(),
        model=_MODEL,
        prompt_token_ids=prompt,
        sampling=SamplingParams(
            max_tokens=max_tokens, temperature=rng.choice((0.0, 0.8)), ignore_eos=True
        ),
    )
    try:
        async with asyncio.timeout(_STUCK_S):
            received = await _read(replica, request, patience=patience)
    except TimeoutError:
        seen.stuck += 1
        return
    if patience is not None:
        seen.given_up += 1
        return
    seen.complete += 1
    seen.wrong_length += received != max_tokens


async def _read(replica: Replica, request: GenerateRequest, *, patience: int | None) -> int:
    """Return how many tokens came; leave after `patience` of them, at 0 before the first."""
    received = 0
    async with aclosing(replica.stream(request)) as deltas:
        if patience == 0:
            # It has to be on its way to be given up: the first wait is cut short.
            first = asyncio.ensure_future(anext(deltas))
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            return received
        async for delta in deltas:
            received += len(delta.token_ids)
            if patience is not None and received >= patience:
                break
    return received


async def _idle(replica: Replica) -> LoadSnapshot:
    """Return a load report made after everything has come to rest, or the last there is."""
    deadline_s = time.monotonic() + _STUCK_S
    last = replica.snapshot
    while time.monotonic() < deadline_s:
        await asyncio.sleep(0.2)
        snapshot = replica.snapshot
        if snapshot is None or snapshot is last:
            continue
        load = snapshot.models[0]
        if not (load.num_running or load.num_waiting or load.kv_tokens_used):
            return snapshot
    if replica.snapshot is None:
        raise MeasurementFailed("the worker never reported its load")
    return replica.snapshot
