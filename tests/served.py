"""A real `deepseek serve` process on a free port."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Served:
    """A running platform."""

    url: str
    process: "subprocess.Popen[str]"
    log: list[str]


@contextmanager
def serve(
    file: Path, *, home: Path | None = None, start_timeout_s: float = START_TIMEOUT_S
) -> Iterator[Served]:
    """Run `deepseek serve -f file --port 0` until the block ends."""
    environment = dict(os.environ)
    if home is not None:
        environment["DEEPSEEK_HOME"] = str(home)
    command = [sys.executable, "-m", "deepseek.cli.main", "serve", "-f", str(file), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    log: list[str] = []
    try:
        yield Served(_wait_for_url(process, log, start_timeout_s), process, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _wait_for_url(process: "subprocess.Popen[str]", log: list[str], timeout_s: float) -> str:
    """Follow the log until it names the address; keep following it in the background."""
    assert process.stdout is not None
    found: list[str] = []
    announced = threading.Event()

    def follow() -> None:
        with contextlib.suppress(ValueError):  # closed when the process has ended
            for line in process.stdout or ():
                log.append(line)
                match = re.search(r"on (http://\S+)", line)
                if match and not found:
                    found.append(match[1])
                    announced.set()
        announced.set()

    threading.Thread(target=follow, daemon=True).start()
    announced.wait(timeout=timeout_s)
    if not found:
        process.kill()
        process.wait()
        raise AssertionError("the platform did not start:\n" + "".join(log))
    return found[0]
