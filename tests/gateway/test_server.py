"""Binding, limits of the listener, and the shutdown that loses no answer."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from deepseek.core.errors import AddressInUse, ConfigurationError
from deepseek.gateway.server import bind
from tests.gateway.conftest import Running, eventually, running_gateway
from tests.gateway.test_disconnect import ask, chat

pytestmark = pytest.mark.server


async def test_a_taken_port_is_told_with_its_remedy() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(AddressInUse, match=rf"127\.0\.0\.1:{port} is in use.*`--port`"):
            bind("127.0.0.1", port)


async def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1") as caught:
        bind("192.0.2.1", 0)
    assert caught.value.param == "gateway.host"
    with pytest.raises(ConfigurationError, match="no such host"):
        bind("no such host", 0)


async def test_ipv6_is_served() -> None:
    with bind("::1", 0) as listener:
        assert listener.family == socket.AF_INET6


async def test_nothing_in_an_answer_names_the_server(running: Running) -> None:
    response = await running.http.get("/health/live")
    assert "server" not in response.headers


async def test_endless_headers_are_431(running: Running) -> None:
    reader, writer = await running.connect()
    filler = b"x-filler: " + b"a" * 4000 + b"\r\n"
    writer.write(b"GET /health/live HTTP/1.1\r\nhost: x\r\n" + filler * 17)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert b'"code":"head_too_large"' in await reader.read(1000)
    writer.close()


async def test_what_is_not_http_is_400_in_json(running: Running) -> None:
    for nonsense in (b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"):
        reader, writer = await running.connect()
        writer.write(nonsense)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"invalid_request_error" in answer
        writer.close()


async def test_two_requests_on_one_connection_are_answered_in_order(running: Running) -> None:
    reader, writer = await running.connect()
    request = b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n"
    writer.write(request % b"/health/live" + request % b"/nowhere")
    first = await reader.readuntil(b'{"status":"live"}')
    assert first.startswith(b"HTTP/1.1 200 ")
    second = await reader.readuntil(b"\r\n\r\n")
    assert second.startswith(b"HTTP/1.1 404 ")
    writer.close()


async def test_a_drain_lets_running_requests_finish() -> None:
    async with running_gateway() as server:
        called: list[str] = []
        stream = await server.openai.chat.completions.create(
            model="caller", messages=[{"role": "user", "content": "w " * 300}], stream=True
        )
        text = ""
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            if not called:
                called.append("drain")
                server.gateway.drain()
        assert text.count("w ") == 300
        await server.serving


async def test_while_draining_new_requests_are_refused_and_health_is_unready() -> None:
    async with running_gateway() as server:
        reader, _ = await ask(server, "/v1/chat/completions", **chat("stuck", stream=True))
        await reader.readuntil(b'"content":"one"')
        server.gateway.drain()
        ready = await server.http.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        assert (await server.http.get("/health/live")).status_code == 200
        refused = await server.post("/v1/completions", model="echo", prompt="a")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert int(refused.headers["retry-after"]) >= 1


async def test_a_stream_that_outlasts_the_drain_ends_with_an_error_event() -> None:
    async with running_gateway(drain_timeout_s=0.05) as server:
        generator = server.deployments.generators["stuck"]
        stream, _ = await ask(server, "/v1/chat/completions", **chat("stuck", stream=True))
        await stream.readuntil(b'"content":"one"')
        whole, _ = await ask(server, "/v1/chat/completions", **chat("silent"))
        await eventually(lambda: server.deployments.generators["silent"].num_open == 1)
        server.gateway.drain()
        tail = await stream.read()
        assert b'data: {"error":{' in tail
        assert b'"code":"draining"' in tail
        assert b"[DONE]" not in tail
        assert tail.endswith(b"0\r\n\r\n")
        assert (await whole.readline()).startswith(b"HTTP/1.1 503 ")
        assert generator.num_open == 0
        await server.serving


async def test_stop_does_not_wait() -> None:
    async with running_gateway(drain_timeout_s=3600) as server:
        reader, _ = await ask(server, "/v1/chat/completions", **chat("stuck", stream=True))
        await reader.readuntil(b'"content":"one"')
        server.gateway.stop()
        assert b'"code":"draining"' in await reader.read()
        await server.serving


async def test_on_drain_is_called_once() -> None:
    async with running_gateway() as server:
        server.gateway.drain()
        server.gateway.drain()
        server.gateway.stop()
        await server.serving
        with pytest.raises(httpx.ConnectError):
            await server.http.get("/health/live")


PROGRAM = """
import asyncio, logging
from deepseek.gateway.server import Gateway, bind
from deepseek.gateway.settings import GatewaySettings
from deepseek.telemetry.metrics import Metrics
from tests.gateway.fakes import FakeDeployments

async def main():
    listener = bind("127.0.0.1", 0)
    deployments = FakeDeployments()
    gateway = Gateway(deployments, GatewaySettings(drain_timeout_s=3600), metrics=Metrics())
    print(listener.getsockname()[1], flush=True)
    await gateway.serve(listener, on_drain=lambda: print("draining", flush=True))
    print("done", flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(30)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_drains_and_the_second_stops(number: signal.Signals) -> None:
    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"},
    )
    assert process.stdout is not None
    port = int(await process.stdout.readline())
    payload = b'{"model": "stuck", "prompt": "a", "stream": true}'
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(payload) + payload
    )
    await reader.readuntil(b'"text":"one"')
    process.send_signal(number)
    assert await process.stdout.readline() == b"draining\n"
    async with httpx.AsyncClient() as http:
        ready = await http.get(f"http://127.0.0.1:{port}/health/ready")
    assert ready.status_code == 503
    process.send_signal(number)
    assert b'"code":"draining"' in await reader.read()
    assert await process.stdout.readline() == b"done\n"
    assert await process.wait() == 0
    writer.close()
