"""The listening socket, and the limits that hold before a request reaches the edge."""

import asyncio
import errno
import socket

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from deepseek.core.errors import AddressInUse, ConfigurationError, DeepseekError, InvalidRequest
from deepseek.gateway.errors import BodyTimeout, HeadTooLarge, encode_error, status_of

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers; more is refused with 431."""
HEAD_TIMEOUT_S = 30.0
"""Seconds a client may take to send them."""
BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    It listens from here on, so that a taken port is known before any model is loaded. Raises
    `AddressInUse`, or `ConfigurationError` for an address this machine does not have.
    """
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {shown}: {error.strerror}; set `gateway.host` to an address of this "
            "machine",
            param="gateway.host",
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"{shown} is in use by another process; stop it, or choose another port with "
                "`--port`",
                param="gateway.port",
            ) from error
        raise ConfigurationError(
            f"cannot listen on {shown}: {error.strerror}; choose another `--host` or `--port`",
            param="gateway.host" if error.errno == errno.EADDRNOTAVAIL else "gateway.port",
        ) from error
    listener.setblocking(False)
    return listener


class LimitedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which alone would keep headers of any size and wait for them forever."""

    _head_bytes = 0
    _head_is_open = True
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_is_open and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(
                    HeadTooLarge(f"request line and headers exceed {MAX_HEAD_BYTES} bytes")
                )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_is_open = False
        self._stop_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest("this is not an HTTP request"))

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._head_is_open = True
        self._stop_timer()
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_is_late)

    def _head_is_late(self) -> None:
        if self._head_bytes:
            self._refuse(BodyTimeout(f"the headers took longer than {HEAD_TIMEOUT_S:g} s"))
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, error: DeepseekError) -> None:
        if self.transport.is_closing():
            return
        body = encode_error(error)
        self.transport.write(
            STATUS_LINE[status_of(error)]
            + b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            % len(body)
            + body
        )
        self.transport.close()
