"""What the edge adds to an engine call: HTTP, JSON, chat template, tokenizer, detokenizer."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import psutil
from frame import Row, fact

from deepseek import app
from deepseek.cli.http_client import HttpClient
from deepseek.core.requests import GenerateRequest, SamplingParams
from deepseek.deployment_file import DeploymentFile, load_deployment_file
from deepseek.serving.platform import Platform
from deepseek.weights.progress import SilentProgress
from serving_measures.platform import (
    CHAT_MODEL,
    MeasurementFailed,
    Run,
    RunningPlatform,
    chat_body,
    serve,
    write_deployment,
)

_TEXT = "Hi"
_BLOCK = 20
"""Direct calls and HTTP requests take turns in blocks of so many."""
_STREAM_TOKENS = 50

Call = Callable[[], Awaitable[None]]


def gateway_cost(run: Run) -> list[Row]:
    """Time the same generation on two like workers: called directly, and over HTTP."""
    file = write_deployment(run.work / "cost.yaml", encoders=False)
    with serve(run, file, name="cost") as platform:
        return asyncio.run(_compare(run, load_deployment_file(file), platform))


async def _compare(run: Run, file: DeploymentFile, served: RunningPlatform) -> list[Row]:
    directories = {
        name: app.find_model(name, settings, base_dir=run.work, progress=SilentProgress())
        for name, settings in file.models.items()
    }
    direct = app.build_platform(file, directories, log_level="warning")
    await direct.start()
    try:
        with HttpClient(served.url, timeout_s=60) as client:
            calls = _Calls(direct, client)
            rows = await _measure(
                "one token", calls.direct_answer, calls.http_answer, served.gateway,
                count=run.count(300, 20),
            )  # fmt: skip
            rows += await _measure(
                f"stream of {_STREAM_TOKENS} chunks", calls.direct_stream, calls.http_stream,
                served.gateway, count=run.count(40, 5),
            )  # fmt: skip
    finally:
        await direct.stop(drain_timeout_s=1)
    return rows


class _Calls:
    """The same generation in four forms."""

    def __init__(self, platform: Platform, client: HttpClient) -> None:
        self._client = client
        (self._replica,) = platform.replicas
        generator = platform.generator(CHAT_MODEL)
        self._prompt = generator.render_chat([{"role": "user", "content": _TEXT}])

    async def direct_answer(self) -> None:
        await self._generate(max_tokens=1)

    async def direct_stream(self) -> None:
        await self._generate(max_tokens=_STREAM_TOKENS)

    async def http_answer(self) -> None:
        body = chat_body(_TEXT, max_tokens=1)
        response = await self._client.request("POST", "/v1/chat/completions", body=body)
        if response.status != 200:
            raise MeasurementFailed(f"the gateway answered {response.status}")

    async def http_stream(self) -> None:
        chunks: list[bytes] = []
        body = chat_body(_TEXT, max_tokens=_STREAM_TOKENS, stream=True)
        await self._client.request(
            "POST", "/v1/chat/completions", body=body, on_event=chunks.append
        )
        if not chunks or chunks[-1] != b"[DONE]":
            raise MeasurementFailed(f"the stream ended early, after {len(chunks)} chunks")

    async def _generate(self, *, max_tokens: int) -> None:
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        request = GenerateRequest(
            id=self._replica.next_id(),
            model=CHAT_MODEL,
            prompt_token_ids=self._prompt,
            sampling=sampling,
        )
        num_tokens = 0
        async for delta in self._replica.stream(request):
            num_tokens += len(delta.token_ids)
        if num_tokens != max_tokens:
            raise MeasurementFailed(f"the engine gave {num_tokens} tokens, not {max_tokens}")


async def _measure(
    name: str, direct: Call, over_http: Call, gateway: psutil.Process, *, count: int
) -> list[Row]:
    direct_s: list[float] = []
    http_s: list[float] = []
    cpu_s = 0.0
    await _time(direct, 3)  # the prompt is in both prefix caches from here on
    await _time(over_http, 3)
    while len(http_s) < count:
        block = min(_BLOCK, count - len(http_s))
        direct_s += await _time(direct, block)
        cpu_before_s = _cpu_s(gateway)
        http_s += await _time(over_http, block)
        cpu_s += _cpu_s(gateway) - cpu_before_s
    rows: list[Row] = []
    for percent in (50, 99):
        ours, alone = _percentile_ms(http_s, percent), _percentile_ms(direct_s, percent)
        what = f"{name}, p{percent}"
        rows += [
            Row(
                measure=f"{what}: over HTTP, and as a direct engine call (ms)",
                ours=round(ours, 2),
                peer=round(alone, 2),
            ),
            fact(f"- gateway's own cost, {what} (ms)", round(ours - alone, 2)),
        ]
    cost = 1000 * cpu_s / count
    return [*rows, fact(f"- gateway's processor time, {name} (ms per request)", cost)]


async def _time(call: Call, count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        start_s = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - start_s)
    return seconds


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _percentile_ms(seconds: Sequence[float], percent: int) -> float:
    return 1000 * float(np.percentile(seconds, percent))
