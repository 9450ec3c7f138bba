"""Puts a worker's engine under load in token ids, without a server in between."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence

from deepseek.cli.load.answer import RequestRecord
from deepseek.cli.load.report import LoadReport, summarise
from deepseek.core.errors import DeepseekError
from deepseek.core.requests import GenerateRequest, SamplingParams
from deepseek.serving.replica import Replica


def random_prompts(count: int, *, num_tokens: int, vocab_size: int) -> list[list[int]]:
    """Return prompts of random ids, the same in every run; no two share a block."""
    rng = random.Random(0)  # noqa: S311 - no secret
    return [[rng.randrange(vocab_size) for _ in range(num_tokens)] for _ in range(count)]


async def run_engine_load(
    replica: Replica,
    prompts: Sequence[list[int]],
    *,
    model: str,
    label: str,
    engine: str,
    output_tokens: int,
    concurrency: int,
    timeout_s: float,
    on_done: Callable[[], None],
) -> LoadReport:
    """Keep `concurrency` greedy answers of exactly `output_tokens` under way until all are done.

    A failed request is counted by kind and never raises. `label` names the model in the report.
    """
    sampling = SamplingParams(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)
    records = [RequestRecord(due_s=0.0) for _ in prompts]
    indices = iter(range(len(prompts)))

    async def take_turns() -> None:
        for index in indices:
            request = GenerateRequest(
                id=replica.next_id(),
                model=model,
                prompt_token_ids=prompts[index],
                sampling=sampling,
            )
            await _send(replica, request, records[index], timeout_s=timeout_s)
            on_done()

    cpu_before_s = time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(prompts))):
            group.create_task(take_turns())
    return summarise(
        records,
        url=None,
        engine=engine,
        model=label,
        task="generate",
        concurrency=concurrency,
        client_cpu_s=time.process_time() - cpu_before_s,
    )


async def _send(
    replica: Replica, request: GenerateRequest, record: RequestRecord, *, timeout_s: float
) -> None:
    """Fill the record; an arrival is a step's new tokens, as a stream's chunk would be."""
    record.due_s = record.sent_s = time.perf_counter()
    record.input_tokens = len(request.prompt_token_ids)
    record.output_tokens = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for delta in replica.stream(request):
                record.token_times_s.append(time.perf_counter())
                record.output_tokens += len(delta.token_ids)
                record.finish_reason = delta.finish_reason
    except DeepseekError as error:
        record.error = error.code
    except TimeoutError:
        record.error = "timeout"
    record.done_s = time.perf_counter()
