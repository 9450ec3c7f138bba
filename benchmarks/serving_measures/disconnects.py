"""Clients that go away in mid-stream: do they leave a slot or memory behind?"""

import asyncio
import json
from urllib.parse import urlsplit

from frame import Row, bound, fact

from deepseek.cli.http_client import HttpClient
from serving_measures.load import story_requests
from serving_measures.platform import (
    MeasurementFailed,
    Run,
    chat_body,
    serve,
    wait_idle,
    write_deployment,
)

_CONCURRENCY = 32
_ANSWER_TOKENS = 400
_SETTLE_S = 2.0
_TIMEOUT_S = 120.0
_GROWTH_LIMIT_PERCENT = 5.0
_MIB = 2**20


def disconnects(run: Run) -> list[Row]:
    """Close connections after one to three chunks; compare memory before and after.

    Every prompt is new, and the KV cache is small (96 MiB), so that the warm-up fills it and later
    requests evict. What the warm-up makes the processes take is theirs, not a leak.
    """
    num_warm_up, count = run.count(200, 40), run.count(1000, 80)
    file = write_deployment(
        run.work / "disconnects.yaml", pool={"kv_cache_bytes": "96MiB"}, encoders=False
    )
    with serve(run, file, name="disconnects") as platform:
        first = platform.resident_bytes()
        asyncio.run(_disconnect_many(platform.url, num_warm_up, seed="warm"))
        before = platform.resident_bytes()
        left = asyncio.run(_disconnect_many(platform.url, count, seed="measured"))
        after = platform.resident_bytes()
    rows = [bound(f"{count} disconnects: requests left behind", left, at_most=0)]
    for index, name in enumerate(("gateway", "worker")):
        rows.append(
            bound(
                f"{count} disconnects: growth of the {name}'s resident memory (%)",
                100 * (after[index] / before[index] - 1),
                at_most=_GROWTH_LIMIT_PERCENT,
            )
        )
        sizes = " > ".join(f"{size[index] / _MIB:.0f}" for size in (first, before, after))
        rows.append(
            fact(f"- {name}: at start, after {num_warm_up} to warm up, afterwards (MiB)", sizes)
        )
    return rows


async def _disconnect_many(url: str, count: int, *, seed: str) -> float:
    """Disconnect so many clients; return how many requests the platform still holds then."""
    texts = [
        request.text for request in story_requests(count, max_tokens=_ANSWER_TOKENS, seed=seed)
    ]
    numbers = iter(range(count))

    async def take_turns() -> None:
        for number in numbers:
            async with asyncio.timeout(_TIMEOUT_S):
                await _disconnect(url, texts[number], num_chunks=1 + number % 3, cut=number % 2 > 0)

    async with asyncio.TaskGroup() as group:
        for _ in range(_CONCURRENCY):
            group.create_task(take_turns())
    with HttpClient(url) as client:
        left = await wait_idle(client)
    await asyncio.sleep(_SETTLE_S)
    return left


async def _disconnect(url: str, text: str, *, num_chunks: int, cut: bool) -> None:
    """Read some chunks of a stream with text, then close the connection, or cut it off (RST)."""
    address = urlsplit(url)
    body = json.dumps(chat_body(text, max_tokens=_ANSWER_TOKENS, stream=True)).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(head.encode() + body)
        received = 0
        while received <= num_chunks:  # the first chunk has the role and no text
            line = await reader.readline()
            if not line or (received == 0 and line.startswith(b'{"error"')):
                raise MeasurementFailed(f"the stream ended after {received} chunks: {line!r}")
            received += line.startswith(b"data: ")
    finally:
        if cut:
            writer.transport.abort()
        else:
            writer.close()
