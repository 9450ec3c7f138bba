"""The server under the edge: uvicorn on a bound socket, with a shutdown that loses no answer."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from deepseek.gateway.drain import Drain
from deepseek.gateway.edge import Edge, build_gateway
from deepseek.gateway.listener import BACKLOG, LimitedHttpProtocol, bind
from deepseek.gateway.settings import GatewaySettings
from deepseek.serving.base import Administration, Deployments
from deepseek.telemetry.metrics import Metrics

__all__ = ["Gateway", "bind"]

logger = logging.getLogger(__name__)

_KEEP_ALIVE_S = 75
"""Longer than clients and proxies usually keep connections, so that they close them, not we."""
_INTERRUPT_GRACE_S = 2.0
"""For the error events of streams that the drain ran out of patience with."""
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Gateway:
    """The HTTP edge over `deployments`, served until it is told to stop.

    `drain` (the first SIGTERM or SIGINT) is the orderly end: `/health/ready` turns 503, new
    requests are refused with 503 and Retry-After, running ones have `gateway.drain_timeout_s` to
    finish, what then still streams ends with an error event. Health and metrics are answered until
    the last request has gone. `stop` (the second signal) skips the wait.
    """

    def __init__(
        self,
        deployments: Deployments,
        settings: GatewaySettings,
        *,
        metrics: Metrics,
        administration: Administration | None = None,
    ) -> None:
        self._settings = settings
        self._drain = Drain()
        self._on_drain: Callable[[], None] | None = None
        self._draining = asyncio.Event()
        self._stopping = asyncio.Event()
        edge = build_gateway(
            deployments,
            settings,
            metrics=metrics,
            drain=self._drain,
            administration=administration if settings.is_administered else None,
        )
        self._uvicorn = _Uvicorn(_config(edge))

    def drain(self) -> None:
        """Begin the orderly end; returns at once."""
        if self._draining.is_set():
            return
        self._draining.set()
        self._drain.begin()
        if self._on_drain is not None:
            self._on_drain()

    def stop(self) -> None:
        """End now: running requests are cut off with an error; returns at once."""
        self.drain()
        self._stopping.set()

    async def serve(
        self,
        listener: socket.socket,
        *,
        on_drain: Callable[[], None] | None = None,
        handle_signals: bool = True,
    ) -> None:
        """Serve on `listener` until `drain` or `stop` has done its work; it is closed then.

        `on_drain` is called once, when the drain begins. `handle_signals` takes SIGTERM and SIGINT
        for the time of the call; it needs the main thread.
        """
        self._on_drain = on_drain
        serving = asyncio.create_task(self._uvicorn.serve(sockets=[listener]))
        asked = asyncio.create_task(self._draining.wait())
        with self._signals(handle_signals):
            try:
                await asyncio.wait((serving, asked), return_when=asyncio.FIRST_COMPLETED)
                if not serving.done():
                    await self._finish_requests()
            finally:
                asked.cancel()
                self._uvicorn.should_exit = True
                self._uvicorn.force_exit = self._stopping.is_set()
                await serving

    async def _finish_requests(self) -> None:
        drain, timeout_s = self._drain, self._settings.drain_timeout_s
        if drain.num_running:
            logger.info("draining: %d requests run, at most %g s", drain.num_running, timeout_s)
        idle = asyncio.create_task(drain.wait_idle(timeout_s))
        hurry = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((idle, hurry), return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        hurry.cancel()
        if not drain.num_running:
            return
        logger.warning("%d requests did not finish and are cut off", drain.num_running)
        drain.interrupt()
        await drain.wait_idle(_INTERRUPT_GRACE_S)

    @contextmanager
    def _signals(self, is_wanted: bool) -> Iterator[None]:
        if not is_wanted:
            yield
            return
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in _STOP_SIGNALS:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self._draining.is_set():
            self.stop()
        else:
            self.drain()


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own signal handling, which would end the process before the drain."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(edge: Edge) -> uvicorn.Config:
    return uvicorn.Config(
        edge,
        http=LimitedHttpProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_config=None,
        backlog=BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(_INTERRUPT_GRACE_S),
    )
