"""Temperature of the processors, and whether heat or a quota slows them down."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from deepseek.telemetry.sensors.cgroups import find_cgroups
from deepseek.telemetry.sensors.kernel_files import known, read_int, read_table, read_text

_ZONE_TYPES = ("x86_pkg_temp", "cpu", "soc")
_HWMON_NAMES = ("coretemp", "k10temp", "zenpower", "cpu_thermal")


class Thermometers:
    """The hottest reading of those that belong to processors; a board's or a disk's do not."""

    def __init__(self, root: Path) -> None:
        """Look for thermometers once."""
        self._paths = list(_zones(root)) or list(_hwmon_inputs(root))

    def read_c(self) -> float | None:
        """Return degrees Celsius; None where no thermometer can be read."""
        millidegrees = known(map(read_int, self._paths))
        return max(millidegrees) / 1000 if millidegrees else None


def _zones(root: Path) -> Iterator[Path]:
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        if (read_text(zone / "type") or "").lower().startswith(_ZONE_TYPES):
            yield zone / "temp"


def _hwmon_inputs(root: Path) -> Iterator[Path]:
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if read_text(chip / "name") in _HWMON_NAMES:
            yield from sorted(chip.glob("temp*_input"))


class Throttling:
    """Whether processors were slowed down since the previous reading, by what the kernel counts."""

    def __init__(self, cpus: Sequence[int], root: Path) -> None:
        """Look for the counters of these processors, and of the groups with a quota, once."""
        self._of_heat = [
            directory / f"{part}_throttle_count"
            for cpu in cpus
            for part in ("core", "package")
            for directory in [root / f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle"]
        ]
        groups = find_cgroups("cpu", root=root)
        self._of_quota = [level / "cpu.stat" for level in groups.levels] if groups else []
        self._previous: tuple[int | None, int | None] = (None, None)

    def read(self) -> bool | None:
        """Return True where a counter has grown, False where heat is counted and none has.

        A quota's counter alone cannot say that nothing slows the processors down.
        """
        before, after = self._previous, (self._num_for_heat(), self._num_for_quota())
        self._previous = after
        grown = [
            new > old
            for old, new in zip(before, after, strict=True)
            if old is not None and new is not None
        ]
        if any(grown):
            return True
        return False if before[0] is not None and after[0] is not None else None

    def _num_for_heat(self) -> int | None:
        counts = known(map(read_int, self._of_heat))
        return sum(counts) if counts else None

    def _num_for_quota(self) -> int | None:
        counts = known(read_table(path).get("nr_throttled") for path in self._of_quota)
        return sum(counts) if counts else None
