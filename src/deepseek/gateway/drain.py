"""Shutting down without losing answers: which requests run, and when they have to end."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Interruptible(Protocol):
    """A running request."""

    def interrupt(self) -> None:
        """End soon with an error; may be called more than once and must not raise."""
        ...


class Drain:
    """The requests that a shutdown waits for."""

    def __init__(self) -> None:
        self.is_draining = False
        self._running: set[Interruptible] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_running(self) -> int:
        return len(self._running)

    @contextmanager
    def running(self, request: Interruptible) -> Iterator[None]:
        """Count a request as running."""
        self._running.add(request)
        self._idle.clear()
        try:
            yield
        finally:
            self._running.discard(request)
            if not self._running:
                self._idle.set()

    def begin(self) -> None:
        """Take no new requests from now on."""
        self.is_draining = True

    def interrupt(self) -> None:
        """Ask every running request to end now."""
        for request in list(self._running):
            request.interrupt()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing runs; return whether that came about within `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
