"""The processors of a pool, from the files in which Linux tells of them.

Read directly: nothing to install in a worker, control groups and single processors included, which
`psutil` leaves out (the tests hold this module to it where both tell). On other systems, and in
virtual machines that hide their sensors, fields are unknown.
"""

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from deepseek.core.load import DeviceLoad
from deepseek.telemetry.sensors.heat import Thermometers, Throttling
from deepseek.telemetry.sensors.host_memory import HostMemory
from deepseek.telemetry.sensors.kernel_files import known, read_int, read_text
from deepseek.telemetry.sensors.rapl import PackagePower

_IDLE, _IO_WAIT, _STOLEN = 3, 4, 7


class CpuSensor:
    """Reads a set of processors, and the memory that this process may use.

    Memory bandwidth stays unknown: the kernel counts bytes at best (resctrl), and no file says how
    many there could be.
    """

    def __init__(
        self,
        cpus: Sequence[int],
        *,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Find what can be read of `cpus`; `root` is where `proc` and `sys` are."""
        self._clock = clock
        self._memory = HostMemory(root)
        self._utilization = Utilization(cpus, root)
        self._clocks = Clocks(cpus, root)
        self._thermometers = Thermometers(root)
        self._throttling = Throttling(cpus, root)
        self._power = PackagePower(root)

    def read(self) -> DeviceLoad:
        """Return what the kernel tells now; see `DeviceSensor.read`."""
        memory = self._memory.read()
        return DeviceLoad(
            utilization=self._utilization.read(),
            memory_used_bytes=memory and memory.used_bytes,
            memory_total_bytes=memory and memory.total_bytes,
            temperature_c=self._thermometers.read_c(),
            is_throttled=self._throttling.read(),
            power_w=self._power.read_w(self._clock()),
            power_limit_w=self._power.read_limit_w(),
            clock_mhz=self._clocks.read_mhz(),
            clock_max_mhz=self._clocks.max_mhz,
        )


def usable_cpus() -> list[int]:
    """Return the processors that this process is pinned to."""
    return sorted(os.sched_getaffinity(0))


class Utilization:
    """The part of the processors' time in which they were not idle, since the previous reading.

    Time that a hypervisor took away counts as busy: nobody here could have used it.
    """

    def __init__(self, cpus: Sequence[int], root: Path) -> None:
        self._names = {f"cpu{cpu}" for cpu in cpus}
        self._path = root / "proc/stat"
        self._previous: tuple[int, int] | None = None

    def read(self) -> float | None:
        """Return 0 to 1; None the first time, or where no time has passed."""
        before, now = self._previous, self._ticks()
        self._previous = now
        if before is None or now is None:
            return None
        busy, total = now[0] - before[0], now[1] - before[1]
        # The kernel may take back a tick of waiting for a disk, and a processor may go offline.
        return min(max(busy / total, 0.0), 1.0) if total > 0 else None

    def _ticks(self) -> tuple[int, int] | None:
        """Return the busy and all ticks of the processors together since the machine started."""
        busy = total = 0
        for line in (read_text(self._path) or "").splitlines():
            name, *numbers = line.split()
            if name in self._names:
                ticks = [int(number) for number in numbers[: _STOLEN + 1]]  # guests are in `user`
                total += sum(ticks)
                busy += sum(ticks) - ticks[_IDLE] - ticks[_IO_WAIT]
        return (busy, total) if total else None


class Clocks:
    """How fast the processors run, and how fast they could."""

    def __init__(self, cpus: Sequence[int], root: Path) -> None:
        self._cpus = set(cpus)
        self._cpuinfo = root / "proc/cpuinfo"
        system = root / "sys/devices/system/cpu"
        self._current = [system / f"cpu{cpu}/cpufreq/scaling_cur_freq" for cpu in cpus]
        highest = known(read_int(system / f"cpu{cpu}/cpufreq/cpuinfo_max_freq") for cpu in cpus)
        self.max_mhz = max(highest) / 1000 if highest else None

    def read_mhz(self) -> float | None:
        """Return the mean over the processors; None where the kernel does not tell.

        Where it does not scale clocks (most virtual machines) it still may say what they run at.
        """
        kilohertz = known(map(read_int, self._current))
        if kilohertz:
            return sum(kilohertz) / len(kilohertz) / 1000
        clocks = self._from_cpuinfo()
        return sum(clocks) / len(clocks) if clocks else None

    def _from_cpuinfo(self) -> list[float]:
        blocks = (read_text(self._cpuinfo) or "").split("\n\n")
        clocks = []
        for block in blocks:
            number = re.search(r"^processor\s*: (\d+)$", block, re.MULTILINE)
            clock = re.search(r"^cpu MHz\s*: ([\d.]+)$", block, re.MULTILINE)
            if number and clock and int(number[1]) in self._cpus:
                clocks.append(float(clock[1]))
        return clocks
