"""Hard slices of a processor, as a container's CPU limit makes them: time that is not used is lost.

Control groups of the kernel, version 2 or 1, made for the length of a block; that takes root.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from serving_measures.platform import MeasurementFailed

_ROOT = Path("/sys/fs/cgroup")
_PERIOD_US = 100_000
"""The kernel's default, and Kubernetes'."""


@contextmanager
def sliced(processes: Sequence[psutil.Process], *, cores: float) -> Iterator[None]:
    """Let each process have `cores` of the machine's time at most."""
    made: list[Path] = []
    try:
        made.extend(_group_of(p, quota_us=int(cores * _PERIOD_US)) for p in processes)
        yield
    finally:
        for group in made:
            _remove(group)


def _group_of(process: psutil.Process, *, quota_us: int) -> Path:
    group = _parent() / f"deepseek-bench-{process.pid}"
    try:
        group.mkdir()
        _limit(group, quota_us=quota_us)
        (group / "cgroup.procs").write_text(str(process.pid))
    except OSError as error:
        raise MeasurementFailed(
            f"no control groups to slice the processor with ({error}); run as root, where "
            f"{_ROOT} can be written to"
        ) from error
    return group


def _parent() -> Path:
    return _ROOT if (_ROOT / "cgroup.controllers").exists() else _ROOT / "cpu"


def _limit(group: Path, *, quota_us: int) -> None:
    if (group / "cpu.max").exists():
        (group / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
        return
    (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
    (group / "cpu.cfs_quota_us").write_text(str(quota_us))


def _remove(group: Path) -> None:
    """Remove a group; processes that still live go back to its parent."""
    for pid in (group / "cgroup.procs").read_text().split():
        (group.parent / "cgroup.procs").write_text(pid)
    group.rmdir()
