"""Engines under another interpreter, with the same protocol as in the test's own process."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import pytest

from deepseek.core.load import ModelLoad
from deepseek.core.wire import ModelInfo, WorkerSpec
from deepseek.engine.base import Output, Request
from deepseek.weights.child_process import environment_of_own_modules

_HOST = Path(__file__).with_name("engine_host.py")
_REPOSITORY = Path(__file__).parents[2]


def vllm_python() -> Path:
    """Return the Python of an environment with vLLM; skips the test where there is none."""
    named = os.environ.get("DEEPSEEK_TEST_VLLM_PYTHON")
    python = Path(named) if named else _REPOSITORY / ".venvs" / "vllm" / "bin" / "python"
    if not python.exists():
        pytest.skip(
            f"no environment with vLLM: {python} does not exist; `make setup-vllm` creates it, or "
            "name another in DEEPSEEK_TEST_VLLM_PYTHON"
        )
    return python


class HostedEngine:
    """Calls an engine in its host process; implements `deepseek.engine.base.Engine`."""

    def __init__(self, connection: Connection, name: str, info: ModelInfo) -> None:
        self.name = name
        self.info = info
        self._connection = connection

    def add(self, request: Request) -> None:
        self._call("add", request)

    def abort(self, request_id: int) -> None:
        self._call("abort", request_id)

    @property
    def has_work(self) -> bool:
        return bool(self._call("has_work"))

    def step(self) -> list[Output]:
        outputs: list[Output] = self._call("step")
        return outputs

    def fail_running(self) -> list[int]:
        failed: list[int] = self._call("fail_running")
        return failed

    def load(self) -> ModelLoad:
        load: ModelLoad = self._call("load")
        return load

    def close(self) -> None:
        self._call("close")

    def break_next_step(self) -> None:
        self._call("break_next_step")

    def _call(self, name: str, *arguments: Any) -> Any:
        self._connection.send((name, arguments))
        return _received(self._connection)


@contextmanager
def hosted_engine(python: Path, spec: WorkerSpec, *, work: Path) -> Iterator[HostedEngine]:
    """Load the spec's first model under `python`; errors of the load are raised here."""
    address = str(work / "host.sock")
    log = work / "host.log"
    with Listener(address) as listener, log.open("wb") as output:
        process = subprocess.Popen(
            [str(python), "-P", str(_HOST), address],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment_of_own_modules(), "HF_HUB_OFFLINE": "1"},
        )
        try:
            with listener.accept() as connection:
                connection.send(spec)
                try:
                    info = _received(connection)
                    yield HostedEngine(connection, spec.models[0].name, info)
                except (EOFError, ConnectionError):
                    process.wait(timeout=10)
                    sys.stderr.write(log.read_text(errors="replace")[-4000:])
                    raise
        finally:
            process.kill()
            process.wait()


def _received(connection: Connection) -> Any:
    error, value = connection.recv()
    if error is not None:
        raise error
    return value
