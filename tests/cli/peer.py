"""A server of the OpenAI protocol to test clients against; the model's name chooses its manners."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

MODELS = {
    "chatty": "generate",  # streams " word" max_tokens times, then usage
    "no-usage": "generate",  # the same without usage
    "cut": "generate",  # the stream ends without a finish reason
    "undone": "generate",  # ... with one, but without [DONE]
    "failing": "generate",  # an error event in mid-stream
    "busy": "generate",  # 429
    "page": "generate",  # 200, but a web page
    "garbage": "generate",  # an event that is not JSON
    "steering": "generate",  # escape sequences in the answer
    "endless": "generate",  # a word every 10 ms until the client leaves
    "vectors": "embed",
    "labels": "classify",
}


class Peer:
    """The application and what it has seen."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.arrivals_s: list[float] = []
        self.num_running = 0
        self.max_running = 0
        self.num_abandoned = 0
        self.app = Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/embeddings", self._encode, methods=["POST"]),
                Route("/v1/classify", self._encode, methods=["POST"]),
            ]
        )

    async def _models(self, request: Request) -> Response:
        data = [{"id": name, "object": "model", "task": task} for name, task in MODELS.items()]
        return JSONResponse({"object": "list", "data": data})

    async def _encode(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        usage = {"prompt_tokens": 2 * len(body["input"].split()) + 3}
        return JSONResponse({"object": "list", "data": [], "usage": usage})

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.arrivals_s.append(time.perf_counter())
        model = body["model"]
        if model == "busy":
            error = {"message": "the queue is full", "code": "overloaded", "type": "server_error"}
            return JSONResponse({"error": error}, status_code=429)
        if model == "page":
            return Response("<html>", media_type="text/html")
        words = sum(len(message["content"].split()) for message in body["messages"])
        usage = {"prompt_tokens": 2 * words + 3, "completion_tokens": body.get("max_tokens", 3)}
        if not body.get("stream"):
            message = {"role": "assistant", "content": " word"}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            return JSONResponse({"choices": choices, "usage": usage})
        return StreamingResponse(self._stream(body, usage), media_type="text/event-stream")

    async def _stream(self, body: dict[str, Any], usage: dict[str, int]) -> AsyncIterator[bytes]:
        model = body["model"]
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        complete = False
        try:
            yield _event({"choices": [_choice({"role": "assistant", "content": ""})]})
            count = 10**6 if model == "endless" else body.get("max_tokens", 3)
            for number in range(count):
                await asyncio.sleep(0.01 if model == "endless" else 0.002)
                if model == "failing" and number == 1:
                    yield _event({"error": {"message": "it broke", "code": "worker_crashed"}})
                    break
                if model == "garbage" and number == 1:
                    yield b"data: {oops\n\n"
                text = "\x1b[31mred\x07" if model == "steering" else " word"
                yield _event({"choices": [_choice({"content": text})]})
            complete = True
            if model == "cut":
                return
            yield _event({"choices": [_choice({}, "length")]})
            if model != "no-usage" and body.get("stream_options"):
                yield _event({"choices": [], "usage": usage})
            if model != "undone":
                yield b"data: [DONE]\n\n"
        finally:
            self.num_running -= 1
            self.num_abandoned += not complete


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def _choice(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


@contextmanager
def running_peer() -> Iterator[tuple[str, Peer]]:
    """Run a peer on a free port of loopback; yields its URL and itself."""
    peer = Peer()
    config = uvicorn.Config(peer.app, port=0, log_level="error", ws="none", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", peer
    finally:
        server.should_exit = True
        thread.join()
