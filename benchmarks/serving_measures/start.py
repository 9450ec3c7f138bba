"""How long a newcomer waits: from a process start, or from a fresh clone, to the first token."""

import asyncio
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

from frame import REPOSITORY, Row, ServerProcess, bound, fact

from serving_measures.platform import (
    QUICKSTART,
    MeasurementFailed,
    Run,
    first_token_s,
    free_port,
    serve_command,
    source_path,
)

_SECOND_START_LIMIT_S = 20.0
_FIRST_START_TIMEOUT_S = 3600.0


def second_start(run: Run) -> list[Row]:
    """Start `deepseek serve` with its models converted already; the slowest start counts."""
    seconds = []
    for number in range(run.count(3, 1)):
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        start_s = time.perf_counter()
        with ServerProcess(
            serve_command(QUICKSTART, port=port),
            log=run.work / f"start-{number}.log",
            environment=source_path(),
        ) as process:
            process.wait_until_ready(f"{url}/health/ready", timeout_s=300)
            ready_s = time.perf_counter() - start_s
            seconds.append(ready_s + asyncio.run(first_token_s(url)))
    return [
        bound(
            f"second start: `deepseek serve` to the first streamed token, slowest of "
            f"{len(seconds)} (s)",
            max(seconds),
            at_most=_SECOND_START_LIMIT_S,
        )
    ]


def first_start(run: Run) -> list[Row]:
    """Clone the repository's last commit, `make serve` in the clone, wait for a token.

    The clone has its own environment and model cache. pip keeps what it has downloaded before; on a
    machine where it has nothing, the figures are those of a newcomer.
    """
    clone, home = run.work / "clone", run.work / "home"
    start_s = time.perf_counter()
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(clone)], check=True)  # noqa: S607
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    inherited = {"PYTHONPATH": "", "VIRTUAL_ENV": "", "DEEPSEEK_HOME": str(home)}
    make = shutil.which("make") or "make"
    phases = _Phases(clone=clone, home=home)
    with (
        ServerProcess(
            [make, "serve", f"PORT={port}"],
            log=run.work / "first-start.log",
            environment=inherited,
            cwd=clone,
        ) as process,
        phases,
    ):
        process.wait_until_ready(f"{url}/health/ready", timeout_s=_FIRST_START_TIMEOUT_S)
        ready_s = time.perf_counter() - start_s
        total_s = ready_s + asyncio.run(first_token_s(url))
    setup_s = phases.setup_done_s - start_s
    models_s = phases.models_done_s - phases.setup_done_s
    if not 0 < setup_s <= setup_s + models_s <= total_s:
        raise MeasurementFailed("the environment or the models of the clone did not appear")
    return [
        fact("first start: fresh clone and `make serve` to the first streamed token (s)", total_s),
        fact("- of it clone, environment and packages, downloads included (s)", setup_s),
        fact("- of it models: download, conversion, training of the head (s)", models_s),
        fact("- of it start of the platform (s)", total_s - setup_s - models_s),
    ]


class _Phases:
    """Watches a clone's files to see when its environment and its models were complete."""

    def __init__(self, *, clone: Path, home: Path) -> None:
        self._done = clone / ".venv" / ".done"
        self._models = home / "models"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.setup_done_s = 0.0
        self.models_done_s = 0.0

    def __enter__(self) -> "_Phases":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        num_models = 0
        while not self._stop.wait(0.1):
            now_s = time.perf_counter()
            if not self.setup_done_s and self._done.exists():
                self.setup_done_s = now_s
            found = _complete_models(self._models)
            if found > num_models:
                num_models, self.models_done_s = found, now_s


def _complete_models(directory: Path) -> int:
    if not directory.is_dir():
        return 0
    return sum(not name.startswith(".") for name in os.listdir(directory))
