"""Starts the platform as an operator would, and looks at its processes from outside."""

import asyncio
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from frame import REPOSITORY, ServerProcess

from deepseek.cli.http_client import HttpClient, HttpFailure

CHAT_MODEL = "smollm2-135m"
EMBED_MODEL = "minilm-l6"
CLASSIFY_MODEL = "sentiment"
QUICKSTART = REPOSITORY / "examples" / "quickstart.yaml"

_IDLE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What every measure is given."""

    work: Path
    """A directory for logs and deployment files, removed at the end."""
    quick: bool = False
    """A short form that shows whether the measure works; its figures mean nothing."""

    def count(self, full: int, quick: int) -> int:
        """Return how much to do."""
        return quick if self.quick else full


class MeasurementFailed(Exception):
    """A measure could not be taken, or would not mean what its name says."""


@dataclass(slots=True, kw_only=True)
class RunningPlatform:
    """A served platform and its processes."""

    url: str
    process: ServerProcess
    gateway: psutil.Process = field(init=False)

    def __post_init__(self) -> None:
        self.gateway = psutil.Process(self.process.pid)

    def worker(self) -> psutil.Process | None:
        """Return the worker's process, while there is one."""
        return next(iter(self.workers()), None)

    def workers(self) -> list[psutil.Process]:
        """Return the worker processes."""
        found: list[psutil.Process] = []
        for child in self.gateway.children(recursive=True):
            try:
                if "deepseek.engine.worker" in child.cmdline():
                    found.append(child)
            except psutil.Error:
                continue  # it ended while we looked
        return found

    def resident_bytes(self) -> tuple[int, int]:
        """Return the resident memory of the gateway and of the worker."""
        worker = self.worker()
        if worker is None:
            raise MeasurementFailed("the platform has no worker process")
        return self.gateway.memory_info().rss, worker.memory_info().rss


@contextmanager
def serve(run: Run, file: Path, *, name: str) -> Iterator[RunningPlatform]:
    """Serve a deployment file until the block ends; the platform is ready inside."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with ServerProcess(
        serve_command(file, port=port), log=run.work / f"{name}.log", environment=source_path()
    ) as process:
        process.wait_until_ready(f"{url}/health/ready", timeout_s=300)
        yield RunningPlatform(url=url, process=process)


def serve_command(file: Path, *, port: int) -> list[str]:
    """Return the command line of `deepseek serve` in this environment."""
    return [
        sys.executable, "-m", "deepseek.cli.main", "serve", "-f", str(file), "--port", str(port),
    ]  # fmt: skip


def source_path() -> dict[str, str]:
    """Return the variables that make this checkout the platform, whatever is installed."""
    inherited = os.environ.get("PYTHONPATH")
    paths = [str(REPOSITORY / "src"), *([inherited] if inherited else [])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def write_deployment(
    path: Path,
    *,
    chat: Mapping[str, Any] | None = None,
    pool: Mapping[str, Any] | None = None,
    encoders: bool = True,
) -> Path:
    """Write a deployment file of the three models and return its path."""
    models: dict[str, Any] = {CHAT_MODEL: {"source": CHAT_MODEL, **(chat or {})}}
    if encoders:
        models |= {name: {"source": name} for name in (EMBED_MODEL, CLASSIFY_MODEL)}
    content = {"models": models, "pools": {"default": {"kv_cache_bytes": "512MiB", **(pool or {})}}}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def chat_body(text: str, *, max_tokens: int, **more: Any) -> dict[str, Any]:
    """Return the body of a greedy chat request for an answer of exactly so many tokens."""
    return {
        "model": CHAT_MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        **more,
    }


async def first_token_s(url: str) -> float:
    """Return the seconds from sending a streaming chat to its first text."""
    arrived: list[float] = []

    def on_event(data: bytes) -> None:
        if not arrived and b'"content":"' in data and b'"content":""' not in data:
            arrived.append(time.perf_counter())

    start_s = time.perf_counter()
    with HttpClient(url, timeout_s=60) as client:
        body = chat_body("Say hello.", max_tokens=4, stream=True)
        response = await client.request(
            "POST", "/v1/chat/completions", body=body, on_event=on_event
        )
    if response.status != 200 or not arrived:
        raise MeasurementFailed(f"the chat was answered with {response.status}, and no text")
    return arrived[0] - start_s


async def gauge(client: HttpClient, name: str) -> float:
    """Return the sum of a metric's samples; a metric that is not shown counts as zero."""
    response = await client.request("GET", "/metrics")
    return sum(
        float(line.rpartition(" ")[2])
        for line in response.body.decode().splitlines()
        if line.startswith((f"{name} ", f"{name}{{"))
    )


async def requests_left(client: HttpClient) -> float:
    """Return how many chats the gateway, the worker's batch and its queue still hold."""
    response = await client.request("GET", "/metrics")
    held = ("deepseek_model_running_requests{", "deepseek_model_waiting_requests{")
    in_flight = 'deepseek_requests_in_flight{route="/v1/chat/completions"}'
    return sum(
        float(line.rpartition(" ")[2])
        for line in response.body.decode().splitlines()
        if line.startswith((*held, in_flight))
    )


async def wait_idle(client: HttpClient) -> float:
    """Wait until no chat is left; return how many still are when the patience ends."""
    deadline_s = time.monotonic() + _IDLE_TIMEOUT_S
    left = await requests_left(client)
    while left and time.monotonic() < deadline_s:
        await asyncio.sleep(0.25)
        left = await requests_left(client)
    return left


async def is_ready(client: HttpClient) -> bool:
    """Return whether `/health/ready` says yes."""
    try:
        return (await client.request("GET", "/health/ready")).status == 200
    except HttpFailure:
        return False
