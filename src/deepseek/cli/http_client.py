"""A small HTTP/1.1 client for the commands that talk to a running server.

A load generator shares the machine with the server it measures, so the client's own cost matters:
docs/benchmarks.md has the figures that led to asyncio and httptools here. It speaks plain requests
with JSON bodies and server-sent events; cookies, redirects and compression are left out.
"""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self, cast
from urllib.parse import urlsplit

import httptools
import msgspec

from deepseek import __version__
from deepseek.core.errors import ConfigurationError

EventSink = Callable[[bytes], None]
"""Receives the data of one server-sent event, at the moment its bytes arrive."""


class HttpFailure(Exception):
    """The exchange failed below HTTP; `kind` is a stable word for counting."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(slots=True, kw_only=True)
class HttpResponse:
    """What came back; the body of an event stream went to the sink instead."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    """Names in lower case."""
    body: bytes = b""

    @property
    def is_event_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")


class HttpClient:
    """Requests to one server over kept-alive connections; cancelling a request closes its own.

    `url` may end in a path, which precedes the path of every request. Use it in a `with` statement
    inside the life of one event loop.
    """

    def __init__(self, url: str, *, timeout_s: float = 600.0) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise ConfigurationError(
                f"--url: {url!r} is not a server's address; write http://HOST:PORT", param="url"
            )
        self.host = parts.hostname
        self.port = port or (443 if parts.scheme == "https" else 80)
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._prefix = parts.path.rstrip("/")
        self._authority = parts.netloc.rpartition("@")[2]
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def request(
        self, method: str, path: str, *, body: Any = None, on_event: EventSink | None = None
    ) -> HttpResponse:
        """Return the response once it is complete; raises `HttpFailure`.

        `body` is sent as JSON (bytes are sent as they are). Events reach `on_event` as they arrive.
        """
        message = self._message(method, path, body)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(message, on_event)
        except TimeoutError:
            raise HttpFailure("timeout", f"no answer within {self._timeout_s:g} s") from None

    def close(self) -> None:
        """Close the connections that no request uses."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _exchange(self, message: bytes, on_event: EventSink | None) -> HttpResponse:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_closing:
                continue
            try:
                return await self._send(connection, message, on_event)
            except HttpFailure:
                # The server may close an idle connection just as it is used; nothing was answered.
                if connection.has_received:
                    raise
        return await self._send(await self._connect(), message, on_event)

    async def _send(
        self, connection: "_Connection", message: bytes, on_event: EventSink | None
    ) -> HttpResponse:
        try:
            response = await connection.exchange(message, on_event)
        except BaseException:
            connection.close()
            raise
        if connection.may_be_reused:
            self._idle.append(connection)
        else:
            connection.close()
        return response

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                _Connection, self.host, self.port, ssl=self._tls
            )
        except ConnectionRefusedError:
            raise HttpFailure("connection refused", f"nothing listens at {self.url}") from None
        except OSError as error:
            raise HttpFailure("connection failed", f"cannot reach {self.url}: {error}") from None
        return connection

    def _message(self, method: str, path: str, body: Any) -> bytes:
        content = body if isinstance(body, bytes) else b""
        if body is not None and not isinstance(body, bytes):
            content = msgspec.json.encode(body)
        head = (
            f"{method} {self._prefix}{path} HTTP/1.1\r\nHost: {self._authority}\r\n"
            f"User-Agent: deepseek/{__version__}\r\nAccept: application/json, text/event-stream\r\n"
        )
        if content:
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        return head.encode("latin-1") + b"\r\n" + content


class _Connection(asyncio.Protocol):
    """One connection and the exchange that is under way on it."""

    def __init__(self) -> None:
        self.has_received = False
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None

    async def exchange(self, message: bytes, on_event: EventSink | None) -> HttpResponse:
        self.has_received = False
        self._response = HttpResponse()
        self._chunks: list[bytes] = []
        self._events = EventStream() if on_event else None
        self._on_event = on_event
        self._keep_alive = False
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        if self._transport is None:
            raise HttpFailure("connection closed", "the server closed the connection")
        self._transport.write(message)
        await self._done
        self._response.body = b"".join(self._chunks)
        return self._response

    @property
    def is_closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    @property
    def may_be_reused(self) -> bool:
        return self._keep_alive and not self.is_closing

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        if self._done is None or self._done.done():
            self.close()
            return
        self.has_received = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            self._finish(error.__context__ or error)
        except httptools.HttpParserError as error:
            self._finish(HttpFailure("not HTTP", f"the answer is not HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._finish(HttpFailure("connection closed", "the server closed the connection"))

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self._response.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._response.status = self._parser.get_status_code()
        if not self._response.is_event_stream:
            self._events = None

    def on_body(self, body: bytes) -> None:
        if self._events is None or self._on_event is None:
            self._chunks.append(body)
            return
        for data in self._events.feed(body):
            self._on_event(data)

    def on_message_complete(self) -> None:
        self._keep_alive = self._parser.should_keep_alive()  # known only here
        self._finish(None)

    def _finish(self, error: BaseException | None) -> None:
        if self._done is None or self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)


class EventStream:
    """Cuts the bytes of a server-sent event stream into the data of its events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the data of the events that are complete now."""
        if b"\r" in data:
            data = data.replace(b"\r", b"")  # JSON escapes the character, so only line ends go
        *complete, self._rest = (self._rest + data).split(b"\n\n")
        return [found for event in complete if (found := _event_data(event))]


def _event_data(event: bytes) -> bytes:
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line[:5] == b"data:"]
    return b"\n".join(lines)
