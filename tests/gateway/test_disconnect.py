"""A client that leaves frees its slot at once, whatever its request was waiting for."""

import json
from typing import Any

import pytest

from tests.gateway.conftest import Running, eventually

pytestmark = pytest.mark.server


async def ask(running: Running, path: str, **body: Any) -> Any:
    """Send a request on a connection of its own; return its two ends."""
    payload = json.dumps(body).encode()
    reader, writer = await running.connect()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(payload)}\r\n\r\n".encode() + payload)
    return reader, writer


def chat(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}


async def test_leaving_a_stream_between_two_tokens_closes_the_generation(running: Running) -> None:
    generator = running.deployments.generators["stuck"]
    reader, writer = await ask(running, "/v1/chat/completions", **chat("stuck", stream=True))
    await reader.readuntil(b'"content":"one"')
    assert generator.num_open == 1
    writer.close()
    await eventually(lambda: generator.num_open == 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_before_the_first_token_closes_the_generation(
    running: Running, stream: bool
) -> None:
    generator = running.deployments.generators["silent"]
    _, writer = await ask(running, "/v1/chat/completions", **chat("silent", stream=stream))
    await eventually(lambda: generator.num_open == 1)
    writer.close()
    await eventually(lambda: generator.num_open == 0)


async def test_leaving_a_completion_closes_the_generation(running: Running) -> None:
    generator = running.deployments.generators["silent"]
    _, writer = await ask(running, "/v1/completions", model="silent", prompt=["a", "b"], n=2)
    await eventually(lambda: generator.num_open == 1)
    writer.close()
    await eventually(lambda: generator.num_open == 0)


async def test_leaving_cancels_an_encoding(running: Running) -> None:
    encoder = running.deployments.encoders["embedder"]
    encoder.is_stuck = True
    _, writer = await ask(running, "/v1/embeddings", model="embedder", input="a")
    await eventually(lambda: encoder.num_open == 1)
    writer.close()
    await eventually(lambda: encoder.num_open == 0)


async def test_those_who_left_are_counted_and_nothing_stays_in_flight(running: Running) -> None:
    generator = running.deployments.generators["stuck"]
    clients = [await ask(running, "/v1/completions", model="stuck", prompt="a") for _ in range(20)]
    await eventually(lambda: generator.num_open == 20)
    for _, writer in clients:
        writer.close()
    await eventually(lambda: generator.num_open == 0)
    line = 'deepseek_requests_total{code="499",model="stuck",route="/v1/completions"} 20.0'
    await eventually(lambda: line in running.metrics.render().decode())
    page = running.metrics.render().decode()
    assert 'deepseek_requests_in_flight{route="/v1/completions"} 0.0' in page


async def test_a_neighbour_streams_on_when_another_leaves(running: Running) -> None:
    reader, leaver = await ask(running, "/v1/chat/completions", **chat("stuck", stream=True))
    await reader.readuntil(b'"content":"one"')
    stream = await running.openai.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": "still here"}], stream=True
    )
    text = ""
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        leaver.close()
    assert text == "still here"


async def test_leaving_while_the_body_is_sent_disturbs_nobody(running: Running) -> None:
    _, writer = await running.connect()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b'content-length: 500\r\n\r\n{"model": '
    )
    await writer.drain()
    await running.http.get("/health/live")
    writer.close()
    line = 'deepseek_requests_total{code="499",model="",route="/v1/chat/completions"} 1.0'
    await eventually(lambda: line in running.metrics.render().decode())
