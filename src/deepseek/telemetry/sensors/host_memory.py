"""Memory that a process on the CPU may use: the machine's, or less where a control group limits it.

What counts is the tightest of them, the one with the least left. As the kernel's own out-of-memory
decisions do, usage leaves out page cache that can be dropped (`inactive_file`): weights that were
read from disk once do not fill the memory.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from deepseek.telemetry.sensors.cgroups import find_cgroups
from deepseek.telemetry.sensors.kernel_files import read_int, read_table

_LIMIT, _USAGE, _DROPPABLE = (
    {1: "memory.limit_in_bytes", 2: "memory.max"},
    {1: "memory.usage_in_bytes", 2: "memory.current"},
    {1: "total_inactive_file", 2: "inactive_file"},
)


class MemoryUse(NamedTuple):
    """Bytes in use, and bytes that can be."""

    used_bytes: int
    total_bytes: int


class HostMemory:
    """Reads the tightest bound on this process."""

    def __init__(self, root: Path) -> None:
        """Find this process's control groups once."""
        self._meminfo = root / "proc/meminfo"
        self._groups = find_cgroups("memory", root=root)

    def read(self) -> MemoryUse | None:
        """Return what is used of what can be; None where the kernel does not tell."""
        table = read_table(self._meminfo)
        if not {"MemTotal", "MemAvailable"} <= table.keys():
            return None
        total = table["MemTotal"] * 1024
        machine = MemoryUse(total - table["MemAvailable"] * 1024, total)
        bounds = [machine, *(use for use in self._limited() if use.total_bytes < total)]
        return min(bounds, key=lambda use: use.total_bytes - use.used_bytes)

    def _limited(self) -> Iterator[MemoryUse]:
        if self._groups is None:
            return
        version, levels = self._groups
        for level in levels:
            limit, usage = read_int(level / _LIMIT[version]), read_int(level / _USAGE[version])
            if limit is not None and usage is not None:
                droppable = read_table(level / "memory.stat").get(_DROPPABLE[version], 0)
                yield MemoryUse(max(usage - droppable, 0), limit)
