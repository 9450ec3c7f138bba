"""What every benchmark shares: rows, their table and file, peers' environments, server processes.

A benchmark is `benchmarks/NAME.py`. It measures ours and a peer in one run on one machine, collects
`Row`s and ends with `sys.exit(finish("NAME", rows))`. See docs/benchmarks.md.
"""

import hashlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
ENVIRONMENTS = REPOSITORY / ".venvs"
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
"""Public traces and data sets; a benchmark that needs them says so where they are absent."""

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback needs no proxy

Figure = float | int | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measure. Units stand in `measure`; `holds` is None where there is no target."""

    measure: str
    ours: Figure
    peer: Figure = None
    ratio: float | None = None
    """How many times better ours is, whichever direction is better."""
    target: str | None = None
    holds: bool | None = None


def fact(measure: str, ours: Figure) -> Row:
    """Return a row that informs and has no target."""
    return Row(measure=measure, ours=_rounded(ours))


def bound(
    measure: str, ours: float, *, at_most: float | None = None, at_least: float | None = None
) -> Row:
    """Return a row that holds when ours lies within the bounds; a NaN never does."""
    low = float("-inf") if at_least is None else at_least
    high = float("inf") if at_most is None else at_most
    words = [f">= {at_least:g}"] if at_least is not None else []
    words += [f"<= {at_most:g}"] if at_most is not None else []
    return Row(
        measure=measure,
        ours=_rounded(ours),
        target=" and ".join(words) or None,
        holds=low <= ours <= high if words else None,
    )


def comparison(
    measure: str,
    *,
    ours: float,
    peer: float | None,
    at_least: float | None = None,
    lower_is_better: bool = False,
) -> Row:
    """Return a row against a peer; it holds when ours is `at_least` so many times better.

    A peer that could not be measured (None) leaves the ratio open, and the target does not hold.
    """
    ratio = None
    if peer is not None:
        better, worse = (peer, ours) if lower_is_better else (ours, peer)
        ratio = better / worse if worse else None
    return Row(
        measure=measure,
        ours=_rounded(ours),
        peer=_rounded(peer),
        ratio=None if ratio is None else round(ratio, 3),
        target=None if at_least is None else f">= {at_least:g}x",
        holds=None if at_least is None else ratio is not None and ratio >= at_least,
    )


def finish(
    name: str,
    rows: Sequence[Row],
    *,
    details: Mapping[str, Any] | None = None,
    results: Path = RESULTS,
) -> int:
    """Print the table, write `results/NAME.json`; return the exit code, 1 where a target fails."""
    print_rows(name, rows)
    path = write_rows(name, rows, details=details, results=results)
    print(f"written to {os.path.relpath(path)}")
    return 1 if any(row.holds is False for row in rows) else 0


def print_rows(title: str, rows: Sequence[Row], *, console: Console | None = None) -> None:
    """Print the rows as one table."""
    table = Table("measure", title=title, title_justify="left")
    for column in ("ours", "peer", "ratio", "target"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("holds")
    marks = {True: "[green]yes[/]", False: "[red]NO[/]", None: ""}
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
        target = row.target or ""
        table.add_row(
            row.measure, _shown(row.ours), _shown(row.peer), ratio, target, marks[row.holds]
        )
    (console or Console(highlight=False)).print(table)


def write_rows(
    name: str,
    rows: Sequence[Row],
    *,
    details: Mapping[str, Any] | None = None,
    results: Path = RESULTS,
) -> Path:
    """Write the rows, their details, the machine and the date as JSON; returns the path."""
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{name}.json"
    content = {
        "rows": [asdict(row) for row in rows],
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **({"details": details} if details else {}),
    }
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path


def machine() -> dict[str, Any]:
    """Return what kind of machine this is; nothing that tells which one."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        cpu = found[1] if found else cpu
    has_affinity = hasattr(os, "sched_getaffinity")
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


@contextmanager
def progress_bar(description: str, *, total: int) -> Iterator["Bar"]:
    """Show how many parts of a benchmark are done, and which one runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield Bar(progress, description, total=total)


class Bar:
    """One progress bar; `step` names the part that begins."""

    def __init__(self, progress: Progress, description: str, *, total: int) -> None:
        self._progress = progress
        self._description = description
        self._task = progress.add_task(description, total=total)

    def step(self, name: str) -> None:
        """Say which part runs now."""
        self._progress.update(self._task, description=f"{self._description}: {name}")

    def done(self) -> None:
        """Count one part as done."""
        self._progress.advance(self._task)


def peer_environment(
    name: str,
    requirements: Sequence[str],
    *,
    torch: bool = True,
    without: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    root: Path = ENVIRONMENTS,
) -> Path:
    """Return the Python of `.venvs/NAME`, with a peer installed; kept between runs.

    `torch` comes first and pinned by constraints.txt, so that no peer pulls another build. What
    the requirements bring and the peer is better off `without` is removed again. Changed
    requirements or constraints make a new environment. Raises `CalledProcessError` with pip's words
    on the terminal.
    """
    constraints = REPOSITORY / "constraints.txt"
    parts = [*requirements, torch, constraints.read_text(), sys.version, *without]
    wanted = json.dumps(parts)
    fingerprint = hashlib.sha256(wanted.encode()).hexdigest()
    home = root / name
    python = home / "bin" / "python"
    stamp = home / "installed.sha256"
    if stamp.exists() and stamp.read_text() == fingerprint:
        return python
    print(f"installing {', '.join(requirements)} in {os.path.relpath(home)}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    pip += ["-c", str(constraints)]
    for packages in (["torch"] if torch else [], list(requirements)):
        if packages:
            subprocess.run([*pip, *packages], check=True, env={**os.environ, **(environment or {})})
    if without:
        uninstall = [str(python), "-m", "pip", "uninstall", "-q", "-y", *without]
        subprocess.run(uninstall, check=True)
    stamp.write_text(fingerprint)
    return python


class ServerFailed(Exception):
    """A server ended before it was ready, or did not become ready in time."""


class ServerProcess:
    """A server under test, its output in a file; leaving the `with` block ends it.

    It leads a process group of its own, and only that group is ever signalled.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def wait_until_ready(self, url: str, *, timeout_s: float = 600.0) -> float:
        """Return the seconds until `url` answered with a success; raises `ServerFailed`."""
        start_s = time.monotonic()
        while True:
            if self._process.poll() is not None:
                raise ServerFailed(
                    f"the server ended with {self._process.returncode}:\n{self.log_tail()}"
                )
            if _answers(url):
                return time.monotonic() - start_s
            if time.monotonic() - start_s > timeout_s:
                raise ServerFailed(f"{url} not ready in {timeout_s:g} s:\n{self.log_tail()}")
            time.sleep(0.1)

    def stop(self, *, grace_s: float = 15.0) -> int:
        """Ask the server to end, end what is left of its group, and return its exit status."""
        self._signal(signal.SIGTERM, group=False)
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL, group=False)
        self._signal(signal.SIGKILL, group=True)  # workers that outlived their parent
        return self._process.wait()

    def log_tail(self, *, num_lines: int = 20) -> str:
        """Return the last lines that the server wrote."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-num_lines:])

    def _signal(self, number: signal.Signals, *, group: bool) -> None:
        try:
            if group:
                os.killpg(self.pid, number)
            elif self._process.poll() is None:
                os.kill(self.pid, number)
        except ProcessLookupError:
            return  # it has ended meanwhile


def _answers(url: str) -> bool:
    try:
        with _DIRECT.open(url, timeout=5) as response:
            return 200 <= int(response.status) < 300
    except (urllib.error.URLError, OSError):
        return False


def _rounded(value: Figure) -> Figure:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _shown(value: Figure) -> str:
    if value is None:
        return ""
    return f"{value:,g}" if isinstance(value, float) else str(value)
