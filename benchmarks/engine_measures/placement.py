"""Which processor cores a server and the load generator run on."""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from serving_measures.platform import MeasurementFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The cores of the server, all its processes and threads, and those of the generator."""

    name: str
    server_cores: frozenset[int]
    client_cores: frozenset[int]

    @property
    def num_threads(self) -> int:
        """Compute threads that a server should use."""
        return len(self.server_cores)


def shared_cores() -> Placement:
    """Two cores for both: what the generator takes, the server lacks."""
    cores = frozenset(_two_cores())
    return Placement(name="two cores", server_cores=cores, client_cores=cores)


def one_core() -> Placement:
    """The server alone on one core, the generator on another."""
    server, client = _two_cores()
    return Placement(
        name="one core", server_cores=frozenset({server}), client_cores=frozenset({client})
    )


@contextmanager
def running_on(cores: Collection[int]) -> Iterator[None]:
    """Keep this thread, and processes that it starts, on these cores until the block ends.

    It is what `taskset` does, without a place in every server's command line.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def require_placed(cores: Collection[int]) -> None:
    """Raise `MeasurementFailed` where a thread of a child process may leave the cores."""
    for process in psutil.Process().children(recursive=True):
        for status in Path(f"/proc/{process.pid}/task").glob("*/status"):
            strays = _allowed_cores(status) - set(cores)
            if strays:
                raise MeasurementFailed(
                    f"a thread of {process.name()!r} may run on cores {sorted(strays)}, outside "
                    f"{sorted(cores)}"
                )


def _two_cores() -> tuple[int, int]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise MeasurementFailed("one core: a server and its load generator need two")
    return cores[0], cores[1]


def _allowed_cores(status: Path) -> set[int]:
    """Read the kernel's list, such as `0-1,4`; empty for a thread that has ended."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return set()
    (listed,) = (line.split()[1] for line in lines if line.startswith("Cpus_allowed_list:"))
    bounds = [part.split("-") for part in listed.split(",")]
    return {core for bound in bounds for core in range(int(bound[0]), int(bound[-1]) + 1)}
