"""A step record of the real engine under a load of many shapes, on one core of its own."""

import asyncio
import math
import random
from collections.abc import Iterator
from pathlib import Path

from engine_checks_measures.worker import running
from engine_measures.placement import Placement, one_core, running_on
from serving_measures.platform import CHAT_MODEL, MeasurementFailed, Run

from deepseek.cli.load.engine_loop import random_prompts, run_engine_load
from deepseek.engine.settings import PoolSettings
from deepseek.scheduling.simulation.step_times import StepTiming, read_step_record
from deepseek.serving.replica import Replica
from deepseek.serving.settings import ModelSettings

MODEL = "chat"
SETTINGS = {"source": CHAT_MODEL, "quantization": "int8", "max_queue": 100_000}
_CONCURRENCIES = (1, 24, 4, 64, 12, 40, 2, 32)
"""In an order that mixes small and large steps over the whole record."""
_SHORTEST, _LONGEST = 8, 900
"""Prompt tokens, drawn evenly on a logarithmic scale."""
_REQUESTS_PER_STREAM = 2
_LEAST_REQUESTS = 6
_OUTPUT_TOKENS = 24


def pool_settings(placement: Placement, **more: object) -> PoolSettings:
    """Return the pool on the server's cores."""
    cores = ",".join(map(str, sorted(placement.server_cores)))
    return PoolSettings.model_validate(
        {"device": "cpu", "cpus": cores, "num_threads": placement.num_threads, **more}
    )


def record_steps(run: Run) -> list[StepTiming]:
    """Run the load, and return what the worker wrote."""
    placement, path = one_core(), run.work / "steps.jsonl"
    asyncio.run(_load(placement, path, rounds=run.count(2, 1)))
    with path.open("rb") as lines:
        steps = read_step_record(lines, model=MODEL)
    if not steps:
        raise MeasurementFailed("the worker recorded no step")
    return steps


async def _load(placement: Placement, path: Path, *, rounds: int) -> None:
    pool = pool_settings(placement, step_record=str(path), kv_cache_bytes="1GiB")
    settings = ModelSettings.model_validate(SETTINGS)
    async with running({MODEL: settings}, pool=pool) as (_, replica):
        vocab_size = replica.check(MODEL).vocab_size
        with running_on(placement.client_cores):  # not before: a worker may use what we may
            for number in range(rounds):
                for concurrency, prompts in _stages(vocab_size, seed=number):
                    await _stage(replica, prompts, concurrency)


async def _stage(replica: Replica, prompts: list[list[int]], concurrency: int) -> None:
    report = await run_engine_load(
        replica,
        prompts,
        model=MODEL,
        label=MODEL,
        engine="torch",
        output_tokens=_OUTPUT_TOKENS,
        concurrency=concurrency,
        timeout_s=300,
        on_done=lambda: None,
    )
    if report.errors:
        raise MeasurementFailed(f"the load that was recorded had errors: {report.errors}")


def _stages(vocab_size: int, *, seed: int) -> Iterator[tuple[int, list[list[int]]]]:
    draws = random.Random(seed)  # noqa: S311 - reproducible prompts
    for concurrency in _CONCURRENCIES:
        count = max(_LEAST_REQUESTS, _REQUESTS_PER_STREAM * concurrency)
        whole = random_prompts(count, num_tokens=_LONGEST, vocab_size=vocab_size)
        low, high = math.log(_SHORTEST), math.log(_LONGEST)
        # Each begins elsewhere in its ids, so that no round finds another's prefix in the cache.
        lengths = [round(math.exp(draws.uniform(low, high))) for _ in whole]
        yield (
            concurrency,
            [
                [draws.randrange(vocab_size), *prompt][:length]
                for prompt, length in zip(whole, lengths, strict=True)
            ],
        )
