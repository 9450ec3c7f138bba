"""A real server on an ephemeral loopback port, over fake deployments."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from deepseek.gateway.server import Gateway, bind
from deepseek.gateway.settings import GatewaySettings
from deepseek.telemetry.metrics import Metrics
from tests.gateway.fakes import FakeAdministration, FakeDeployments

Start = Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A gateway that serves."""

    url: str
    port: int
    gateway: Gateway
    deployments: FakeDeployments
    administration: FakeAdministration
    metrics: Metrics
    serving: "asyncio.Task[None]"
    http: httpx.AsyncClient
    openai: AsyncOpenAI
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a raw connection; it is closed with the server."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        return reader, writer

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.http.post(path, json=body)


@asynccontextmanager
async def running_gateway(**settings: Any) -> AsyncIterator[Running]:
    deployments, metrics = FakeDeployments(), Metrics()
    administration = FakeAdministration()
    gateway = Gateway(
        deployments, GatewaySettings(**settings), metrics=metrics, administration=administration
    )
    listener = bind("127.0.0.1", 0)
    port: int = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    serving = asyncio.create_task(gateway.serve(listener, handle_signals=False))
    try:
        async with (
            httpx.AsyncClient(base_url=url) as http,
            AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        ):
            server = Running(
                url=url,
                port=port,
                gateway=gateway,
                deployments=deployments,
                administration=administration,
                metrics=metrics,
                serving=serving,
                http=http,
                openai=client,
            )
            yield server
            for writer in server.writers:
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
    finally:
        gateway.stop()
        await serving


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with running_gateway() as server:
        yield server


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; the test's own timeout is the limit."""
    while not condition():
        await asyncio.sleep(0.005)
