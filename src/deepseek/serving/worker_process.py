"""Worker processes and the sockets to them; knows nothing of restarts or requests.

A process imports its libraries, which takes seconds, before it reads what it is to do. One that has
not been told yet stands by.
"""

import asyncio
import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

import deepseek
from deepseek.core.wire import (
    FRAME_HEADER,
    MAX_FRAME_BYTES,
    STAND_BY,
    Command,
    Event,
    WorkerSpec,
    encode_spec,
    event_decoder,
    frame,
)

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 120.0
"""A worker connects after importing its libraries, before it loads a model."""
_STANDALONE = Path(deepseek.__file__).parent / "engine" / "standalone.py"
_SPIN_COUNT = "3000"
"""As fast as spinning on when the machine is ours, and far faster beside a busy neighbour."""


class WorkerDied(Exception):
    """The process ended, or never connected."""


class WorkerProcess:
    """A started process with an open connection."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, command: Command) -> None:
        """Queue a command on the socket; a dead worker's commands vanish, its reader tells."""
        if not self._writer.is_closing():
            self._writer.write(frame(command))

    async def events(self) -> AsyncIterator[Event]:
        """Yield events until the connection ends."""
        try:
            while True:
                header = await self._reader.readexactly(FRAME_HEADER.size)
                (length,) = FRAME_HEADER.unpack(header)
                if length > MAX_FRAME_BYTES:
                    logger.error(
                        "worker %d sent a frame of %d bytes; dropping it", self.pid, length
                    )
                    return
                yield event_decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        except msgspec.DecodeError:
            logger.exception("worker %d sent an undecodable frame; dropping it", self.pid)

    async def end(self, *, grace_s: float = 0.0) -> int:
        """Wait `grace_s` for the process to leave by itself, then make it; return its status."""
        self._writer.close()
        if self._process.returncode is None and grace_s > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), grace_s)
        if self._process.returncode is None:
            self._process.kill()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        return await self._process.wait()


class WorkerLauncher:
    """Starts the workers of a pool, one after another; may keep a process that stands by."""

    def __init__(self, python: str | None, *, stands_by: bool = False) -> None:
        """`python`: the pool's interpreter, where it is not ours."""
        self._command = _command(python)
        self._stands_by = stands_by
        self._standby: asyncio.subprocess.Process | None = None

    @property
    def standby_pid(self) -> int | None:
        """The process that stands by, while there is one."""
        standby = self._standby
        return None if standby is None or standby.returncode is not None else standby.pid

    async def launch(self, spec: WorkerSpec) -> WorkerProcess:
        """Return a worker once it has connected: the process that stood by, or a new one.

        Raises `WorkerDied` where it ends first or takes longer than `CONNECT_TIMEOUT_S`.
        """
        loop = asyncio.get_running_loop()
        connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        connected = loop.create_future()

        def on_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if connected.done():
                writer.close()
            else:
                connected.set_result((reader, writer))

        with tempfile.TemporaryDirectory(prefix="deepseek-") as directory:
            path = str(Path(directory) / "worker.sock")
            server = await asyncio.start_unix_server(on_connect, path, limit=2**20)
            try:
                process = await self._take_process()
                spec = msgspec.structs.replace(spec, socket_path=path)
                return await _connect(process, spec, connected)
            finally:
                server.close()

    async def stand_by(self) -> None:
        """Have a process stand by, where the pool wants one and has none.

        To be called when the worker has all it needs: the imports take a processor for seconds.
        """
        if not self._stands_by or self.standby_pid is not None:
            return
        try:
            self._standby = await self._spawn(STAND_BY)
        except WorkerDied as error:
            logger.warning("no worker stands by: %s", error)

    async def close(self) -> None:
        """End the process that stands by."""
        standby, self._standby = self._standby, None
        if standby is not None:
            if standby.returncode is None:
                standby.kill()
            await standby.wait()

    async def _take_process(self) -> asyncio.subprocess.Process:
        standby, self._standby = self._standby, None
        if standby is not None and standby.returncode is None:
            logger.info("worker %d stood by", standby.pid)
            return standby
        return await self._spawn()

    async def _spawn(self, *arguments: str) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                *self._command,
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                env=worker_environment(),
            )
        except OSError as error:
            raise WorkerDied(f"the worker cannot be started: {error}") from error


async def _connect(
    process: asyncio.subprocess.Process,
    spec: WorkerSpec,
    connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]],
) -> WorkerProcess:
    stdin = process.stdin
    if stdin is None:
        raise WorkerDied("the worker has no standard input")
    stdin.write(encode_spec(spec))
    stdin.close()
    exited = asyncio.ensure_future(process.wait())
    try:
        awaited: set[asyncio.Future[Any]] = {connected, exited}
        await asyncio.wait(awaited, timeout=CONNECT_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if connected.done():
            return WorkerProcess(process, *connected.result())
        if process.returncode is None:
            raise WorkerDied(f"the worker did not connect within {CONNECT_TIMEOUT_S:.0f} s")
        raise WorkerDied(f"the worker exited with status {process.returncode} before connecting")
    except (WorkerDied, asyncio.CancelledError):
        if process.returncode is None:
            process.kill()
        raise
    finally:
        exited.cancel()


def _command(python: str | None) -> list[str]:
    if python is None:
        return [sys.executable, "-m", "deepseek.engine.worker"]
    return [python, "-P", str(_STANDALONE)]


def worker_environment() -> dict[str, str]:
    """Return the worker's environment: ours, its log not buffered, models never fetched.

    Compute threads spin briefly at a barrier, then sleep (`GOMP_SPINCOUNT`, unless it or
    `OMP_WAIT_POLICY` is set already): see docs/decisions/0003. Weights lie in huge pages where the
    system gives them on request (`GLIBC_TUNABLES`, unless it is set): see docs/decisions/0005.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
    environment.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    return environment
