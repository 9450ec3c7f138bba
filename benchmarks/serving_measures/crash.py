"""`kill -9` of the worker under load: who notices, for how long, and who is left waiting."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

import psutil
from frame import Row, bound, fact

from deepseek.cli.http_client import HttpClient
from deepseek.cli.load.answer import RequestRecord
from deepseek.cli.load.plan import LoadPlan, PlannedRequest
from deepseek.cli.load.prompts import random_text
from deepseek.cli.load.report import LoadReport
from deepseek.cli.load.runner import run_load
from serving_measures.load import story_requests
from serving_measures.platform import (
    CHAT_MODEL,
    QUICKSTART,
    MeasurementFailed,
    Run,
    RunningPlatform,
    chat_body,
    gauge,
    is_ready,
    serve,
)

_NUM_STREAMS = 16
_STREAM_TOKENS = 400
_NUM_YOUNG = 4
_YOUNG_WORDS = 1500
"""A prompt of several engine steps: killed before its first token, so it must be retried."""
_READY_LIMIT_S = 15.0
_HANG_S = 120.0
_POLL_S = 0.05


def crash(run: Run) -> list[Row]:
    """Kill the worker while streams run and new requests arrive; then look at everybody."""
    with serve(run, QUICKSTART, name="crash") as platform:
        return asyncio.run(_crash(platform))


async def _crash(platform: RunningPlatform) -> list[Row]:
    worker = platform.worker()
    if worker is None:
        raise MeasurementFailed("the platform has no worker process")
    with HttpClient(platform.url, timeout_s=10) as client:
        streams = asyncio.create_task(_load(platform, _streams(), max_tokens=_STREAM_TOKENS))
        await _wait_running(client, _NUM_STREAMS)
        await asyncio.sleep(1.0)  # every stream has begun
        young = asyncio.create_task(_load(platform, _young(), max_tokens=8))
        await asyncio.sleep(0.1)
        worker.kill()
        ready_s = await _wait_ready(platform, client, old_worker=worker.pid)
        old, new = await streams, await young
        answers = await client.request(
            "POST", "/v1/chat/completions", body=chat_body("Are you back?", max_tokens=4)
        )
    is_same_gateway = (
        platform.gateway.is_running() and platform.gateway.status() != psutil.STATUS_ZOMBIE
    )
    hung = [r for r in (*old.records, *new.records) if not _ended_properly(r)]
    return [
        bound("kill -9 of the worker under load: ready again (s)", ready_s, at_most=_READY_LIMIT_S),
        bound(
            f"kill -9: of {_NUM_STREAMS} streams and {_NUM_YOUNG} new requests without a proper "
            "end",
            len(hung),
            at_most=0,
        ),
        bound("kill -9: new requests answered after a retry", new.num_ok, at_least=_NUM_YOUNG),
        bound(
            "kill -9: gateway process lost (1 = yes)",
            0 if is_same_gateway and answers.status == 200 else 1,
            at_most=0,
        ),
        *_endings(old.records),
    ]


async def _load(
    platform: RunningPlatform, requests: list[PlannedRequest], *, max_tokens: int
) -> LoadReport:
    plan = LoadPlan(
        requests=requests,
        concurrency=len(requests),
        extra_body={"temperature": 0, "ignore_eos": True, "max_tokens": max_tokens},
    )
    return await run_load(plan, url=platform.url, model=CHAT_MODEL, timeout_s=_HANG_S)


def _streams() -> list[PlannedRequest]:
    return story_requests(_NUM_STREAMS, max_tokens=_STREAM_TOKENS, seed="crash")


def _young() -> list[PlannedRequest]:
    return [
        PlannedRequest(text=random_text(_YOUNG_WORDS, seed=f"young {number}"))
        for number in range(_NUM_YOUNG)
    ]


async def _wait_running(client: HttpClient, count: int) -> None:
    deadline_s = time.monotonic() + _HANG_S
    while await gauge(client, "deepseek_model_running_requests") < count:
        if time.monotonic() > deadline_s:
            raise MeasurementFailed(f"{count} streams never ran together")
        await asyncio.sleep(0.1)


async def _wait_ready(platform: RunningPlatform, client: HttpClient, *, old_worker: int) -> float:
    """Return the seconds until the platform is ready with another worker."""
    start_s = time.perf_counter()
    while time.perf_counter() - start_s < _HANG_S:
        worker = platform.worker()
        if worker is not None and worker.pid != old_worker and await is_ready(client):
            return time.perf_counter() - start_s
        await asyncio.sleep(_POLL_S)
    return float("inf")


def _ended_properly(record: RequestRecord) -> bool:
    """An answer, an error event, or an error that says when to come back; no silence, no cut."""
    return record.error is None or record.error.startswith(("error in the stream", "503", "429"))


def _endings(records: Sequence[RequestRecord]) -> list[Row]:
    kinds = Counter(record.error or "complete answer" for record in records)
    return [fact(f"- streams that ended with: {kind}", count) for kind, count in kinds.items()]
