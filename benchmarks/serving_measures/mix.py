"""Many tasks on one worker at once: does everybody get an answer, and the same one as alone?"""

import asyncio
import itertools
import time

from frame import Row, bound, fact

from deepseek.cli.load.answer import RequestRecord
from deepseek.cli.load.plan import LoadPlan, LoadTask, PlannedRequest
from deepseek.cli.load.prompts import random_text
from deepseek.cli.load.report import LoadReport
from deepseek.cli.load.runner import run_load
from serving_measures.platform import (
    CHAT_MODEL,
    CLASSIFY_MODEL,
    EMBED_MODEL,
    MeasurementFailed,
    Run,
    serve,
    write_deployment,
)

_PROMPT_WORDS = (6, 30, 120, 420)
_MAX_TOKENS = (16, 32, 48, 64, 96, 128, 160, 200)
_ENCODER_WORDS = (3, 8, 15, 30, 60, 120)
_ENCODER_CONCURRENCY = 8


def mix(run: Run) -> list[Row]:
    """Serve each chat alone, then all at once beside two encoders on a fresh platform.

    Both platforms compute in float32. The second is a fresh one so that its prompts are computed,
    not found in the prefix cache. Greedy answers are compared by text, token count and end.
    """
    chats = _chat_requests()[: run.count(32, 8)]
    num_encodings = run.count(500, 60)
    file = write_deployment(run.work / "mix.yaml", chat={"dtype": "float32"})
    with serve(run, file, name="alone") as platform:
        alone = asyncio.run(_chat(platform.url, chats, concurrency=1))
    if alone.errors:
        raise MeasurementFailed(f"chats served alone failed: {alone.errors}")
    with serve(run, file, name="mix") as platform:
        start_s = time.perf_counter()
        together, *encoders = asyncio.run(_together(platform.url, chats, num_encodings))
        duration_s = time.perf_counter() - start_s
    num_errors = sum(sum(report.errors.values()) for report in (together, *encoders))
    num_different = sum(
        _answer(one) != _answer(other)
        for one, other in zip(alone.records, together.records, strict=True)
    )
    load = f"{len(chats)} chats, {num_encodings} embeddings, {num_encodings} classifications"
    return [
        bound(f"mix of {load} on one worker: errors", num_errors, at_most=0),
        bound("mix: greedy float32 answers that differ from those alone", num_different, at_most=0),
        fact("mix: duration (s)", duration_s),
        fact("mix: output tokens of the chats", together.output_tokens),
    ]


def _chat_requests() -> list[PlannedRequest]:
    """Return every combination of prompt length and answer length, short and long in turns."""
    sizes = itertools.product(_MAX_TOKENS, _PROMPT_WORDS)
    return [
        PlannedRequest(
            text="Tell me a story about " + random_text(words, seed=f"mix {number}"),
            max_tokens=max_tokens,
        )
        for number, (max_tokens, words) in enumerate(sizes)
    ]


async def _chat(url: str, chats: list[PlannedRequest], *, concurrency: int) -> LoadReport:
    plan = LoadPlan(requests=chats, concurrency=concurrency, extra_body={"temperature": 0})
    return await run_load(plan, url=url, model=CHAT_MODEL, keep_text=True)


async def _encode(url: str, *, task: LoadTask, model: str, count: int) -> LoadReport:
    lengths = itertools.cycle(_ENCODER_WORDS)
    requests = [
        PlannedRequest(text=random_text(next(lengths), seed=f"{model} {number}"))
        for number in range(count)
    ]
    plan = LoadPlan(requests=requests, task=task, concurrency=_ENCODER_CONCURRENCY)
    return await run_load(plan, url=url, model=model)


async def _together(
    url: str, chats: list[PlannedRequest], num_encodings: int
) -> tuple[LoadReport, ...]:
    return await asyncio.gather(
        _chat(url, chats, concurrency=len(chats)),
        _encode(url, task=LoadTask.EMBED, model=EMBED_MODEL, count=num_encodings),
        _encode(url, task=LoadTask.CLASSIFY, model=CLASSIFY_MODEL, count=num_encodings),
    )


def _answer(record: RequestRecord) -> tuple[str, int | None, str | None]:
    return record.text, record.output_tokens, record.finish_reason
