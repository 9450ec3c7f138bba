"""Power of the processors, from the energy counters that the kernel's powercap tree shows.

They count whole packages, so that a pool on part of a machine shares the figure with everybody on
it. Since 2020 most kernels let only root read them (CVE-2020-8694); then power is unknown.
"""

import re
from pathlib import Path

from deepseek.telemetry.sensors.kernel_files import known, read_int, read_text

_PACKAGE = re.compile(r"intel-rapl:\d+")  # also AMD's; `intel-rapl:0:0` is a part of a package
_LONG_TERM_LIMIT = "constraint_0_power_limit_uw"


class PackagePower:
    """Watts since the previous reading, over all packages."""

    def __init__(self, root: Path) -> None:
        """Look for packages once."""
        zones = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
        self._packages = [
            zone
            for zone in zones
            if _PACKAGE.fullmatch(zone.name)
            and (read_text(zone / "name") or "").startswith("package")
        ]
        self._previous: tuple[float, list[int]] | None = None

    def read_w(self, now_s: float) -> float | None:
        """Return the mean power since the last call; None the first time or where unreadable."""
        energies = known(read_int(zone / "energy_uj") for zone in self._packages)
        if not energies or len(energies) < len(self._packages):
            self._previous = None
            return None
        previous, self._previous = self._previous, (now_s, energies)
        if previous is None or now_s <= previous[0]:
            return None
        used = map(_used_uj, self._packages, previous[1], energies)
        return sum(used) * 1e-6 / (now_s - previous[0])

    def read_limit_w(self) -> float | None:
        """Return the power that all packages may draw together for long."""
        limits = known(read_int(zone / _LONG_TERM_LIMIT) for zone in self._packages)
        if not limits or len(limits) < len(self._packages):
            return None
        return sum(limits) * 1e-6


def _used_uj(zone: Path, before: int, after: int) -> int:
    """Return the difference of a counter that begins again at its range (a minute under load)."""
    if after >= before:
        return after - before
    return after + (read_int(zone / "max_energy_range_uj") or before) - before
