"""A worker process under test, and answers from it."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager

from frame import REPOSITORY

from deepseek.app import prepare, started_platform
from deepseek.core.requests import GenerateRequest, SamplingParams
from deepseek.deployment_file import DEFAULT_POOL, DeploymentFile
from deepseek.engine.settings import PoolSettings
from deepseek.serving.platform import Platform
from deepseek.serving.replica import Replica
from deepseek.serving.settings import ModelSettings
from deepseek.weights.progress import SilentProgress


@asynccontextmanager
async def running(
    models: Mapping[str, ModelSettings], *, pool: PoolSettings
) -> AsyncIterator[tuple[Platform, Replica]]:
    """Run one worker with these models for the length of the block; each has loaded."""
    file = DeploymentFile(models=dict(models), pools={DEFAULT_POOL: pool})
    file, directories = prepare(file, base_dir=REPOSITORY, progress=SilentProgress())
    async with started_platform(file, directories, log_level="warning") as platform:
        (replica,) = platform.replicas
        for name in models:
            replica.check(name)
        yield platform, replica


async def answer(
    replica: Replica, model: str, prompt: list[int], sampling: SamplingParams
) -> list[int]:
    """Return one answer's tokens; raises errors of `core.errors`."""
    request = GenerateRequest(
        id=replica.next_id(), model=model, prompt_token_ids=prompt, sampling=sampling
    )
    tokens: list[int] = []
    async with aclosing(replica.stream(request)) as deltas:
        async for delta in deltas:
            tokens.extend(delta.token_ids)
    return tokens


async def answers(
    replica: Replica,
    model: str,
    work: Sequence[tuple[list[int], SamplingParams]],
    *,
    concurrency: int,
) -> list[list[int]]:
    """Return the answers to prompts, in their order, `concurrency` of them under way at once."""
    found: list[list[int]] = [[] for _ in work]
    indices = iter(range(len(work)))

    async def take_turns() -> None:
        for index in indices:
            prompt, sampling = work[index]
            found[index] = await answer(replica, model, prompt, sampling)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(work))):
            group.create_task(take_turns())
    return found
