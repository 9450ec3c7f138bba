"""One HTTP request and its answer, on the bare ASGI messages.

Everything that speaks ASGI is here, so that the routes deal in bytes in and bytes out.
"""

import asyncio
import logging
import os
import re
import time
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from deepseek.core.errors import DeepseekError, Draining, RequestTimeout
from deepseek.gateway.errors import encode_error, error_headers, status_of

logger = logging.getLogger(__name__)

T = TypeVar("T")
Headers = Iterable[tuple[bytes, bytes]]

CLIENT_CLOSED_STATUS = 499
"""Counted, never sent: the client left before its answer was complete (nginx's number)."""
JSON = b"application/json"
_SMALL_BODY_BYTES = 64 * 1024
_LINGER_S = 2.0
_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


class ClientDisconnected(Exception):
    """Nobody is left to answer."""


class Exchange:
    """Reads one request and writes its answer, once: whole, or as a stream of events."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.started_at = time.perf_counter()
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.request_id = _request_id(scope)
        self.route = "unmatched"
        self.model = ""
        """The deployment that answers; empty until it is found."""
        self.status = 0
        self.is_streaming = False
        self._scope = scope
        self._receive = receive
        self._send = send
        self._body_is_read = False
        self._is_interrupted = False
        self._leaving: asyncio.Task[None] | None = None

    @property
    def path_params(self) -> dict[str, str]:
        params: dict[str, str] = self._scope.get("path_params", {})
        return params

    @property
    def is_interrupted(self) -> bool:
        return self._is_interrupted

    def header(self, name: bytes) -> bytes | None:
        """Return a request header's value (`name` in lower case)."""
        return next((value for key, value in self._scope["headers"] if key == name), None)

    async def receive_body_part(self) -> tuple[bytes, bool]:
        """Return the next part of the body and whether more follows.

        Raises `ClientDisconnected`, and `Draining` once the shutdown's patience is over.
        """
        if self._is_interrupted:
            raise Draining("the server is shutting down; send the request again")
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        more: bool = message.get("more_body", False)
        self._body_is_read = not more
        part: bytes = message.get("body", b"")
        return part, more

    async def answer(
        self, body: bytes, *, status: int = 200, media: bytes = JSON, headers: Headers = ()
    ) -> None:
        """Send a whole answer."""
        await self._start(
            status, [(b"content-type", media), (b"content-length", b"%d" % len(body)), *headers]
        )
        await self._send({"type": "http.response.body", "body": body})

    async def open_stream(self, *, headers: Headers = ()) -> None:
        """Send the headers of a server-sent event stream, `headers` among them."""
        self.is_streaming = True
        await self._start(
            200,
            [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),  # nginx would hold the events back
                *headers,
            ],
        )

    async def write(self, events: bytes) -> None:
        """Send events; waits while the client's buffers are full."""
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def close_stream(self) -> None:
        """End the stream."""
        self.is_streaming = False
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, error: DeepseekError) -> None:
        """Answer with an error: as status and body, or as the last event of a stream."""
        body = encode_error(error)
        if self.is_streaming:
            await self.write(b"data: " + body + b"\n\n")
            await self.close_stream()
        elif self.status == 0:
            await self._refuse(status_of(error), body, error_headers(error))

    def interrupt(self) -> None:
        """End the request that `attend` runs, with `Draining`."""
        self._is_interrupted = True
        if self._leaving is not None:
            self._leaving.cancel()

    async def attend(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work`, but no longer than the client stays.

        Raises `ClientDisconnected` when it leaves and `Draining` when `interrupt` is called; both
        only after `work` has been cancelled and has cleaned up.
        """
        working = asyncio.create_task(work)
        self._leaving = asyncio.create_task(self._client_leaves())
        if self._is_interrupted:
            self._leaving.cancel()
        try:
            await asyncio.wait((working, self._leaving), return_when=asyncio.FIRST_COMPLETED)
            if working.cancelled():
                # Not by us: the deployment's time limit struck while the client, not the model,
                # was waited for.
                raise RequestTimeout("the client read its answer too slowly")
            if working.done():
                return working.result()
        finally:
            self._leaving.cancel()
            await _cancel(working)
        if self._is_interrupted:
            raise Draining("the server is shutting down; send the request again")
        raise ClientDisconnected

    async def _client_leaves(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        headers.append((b"x-request-id", self.request_id))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _refuse(self, status: int, body: bytes, headers: Headers) -> None:
        """Answer a request whose body may not have been read.

        Closing a connection on which a client still sends would reset it, and the client would
        never see why. So the answer goes out complete, and what still comes is thrown away for a
        moment before the connection is closed (nginx: `lingering_close`).
        """
        if self._body_is_read or self._has_small_body():
            await self.answer(body, status=status, headers=headers)
            return
        length = (b"content-length", b"%d" % len(body))
        await self._start(
            status, [(b"content-type", JSON), length, (b"connection", b"close"), *headers]
        )
        await self.write(body)
        try:
            async with asyncio.timeout(_LINGER_S):
                more = True
                while more:
                    _, more = await self.receive_body_part()
        except (TimeoutError, ClientDisconnected, Draining):
            pass  # it has had its answer
        await self._send({"type": "http.response.body", "body": b""})

    def _has_small_body(self) -> bool:
        if self.header(b"transfer-encoding") is not None:
            return False
        return int(self.header(b"content-length") or 0) <= _SMALL_BODY_BYTES


def new_id(prefix: str) -> str:
    """Return an identifier such as `chatcmpl-9f86d081884c7d659a2feaa0`."""
    return prefix + os.urandom(12).hex()


def _request_id(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE_REQUEST_ID.fullmatch(value):
            sane: bytes = value
            return sane
    return new_id("req-").encode()


async def _cancel(task: "asyncio.Task[Any]") -> None:
    """Cancel a task and wait until it has cleaned up."""
    if task.done():
        return
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.debug("a request that was no longer wanted ended with %r", error)
