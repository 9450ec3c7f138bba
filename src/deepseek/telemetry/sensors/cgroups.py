"""Where this process's control groups are: limits that a container, a unit or a pod has set.

A controller is managed by one version of the interface at a time: by the hierarchy of version 1
that names it, or else by version 2.
"""

from pathlib import Path, PurePosixPath
from typing import NamedTuple

from deepseek.telemetry.sensors.kernel_files import read_text


class Cgroups(NamedTuple):
    """The groups that bind this process for one controller."""

    version: int
    levels: list[Path]
    """Directories from the process's own group up to the top one that can be seen."""


def find_cgroups(controller: str, *, root: Path) -> Cgroups | None:
    """Return the groups of `memory`, `cpu`, ...; None where there are none."""
    version, group = _group_of_this_process(controller, root)
    if group is None:
        return None
    for mount_root, mount_point in _mounts(controller, version, root):
        # In a container the mount may begin below the top: its root is then part of the path.
        if not group.is_relative_to(mount_root):
            continue
        top = root / mount_point.lstrip("/")
        own = top / group.relative_to(mount_root)
        levels = [own, *(parent for parent in own.parents if parent.is_relative_to(top))]
        return Cgroups(version, levels)
    return None


def _group_of_this_process(controller: str, root: Path) -> tuple[int, PurePosixPath | None]:
    """Read lines of `id:controllers:path`; version 2 is the one without controllers."""
    version_2 = None
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return 1, PurePosixPath(path)
        if not controllers:
            version_2 = PurePosixPath(path)
    return 2, version_2


def _mounts(controller: str, version: int, root: Path) -> list[tuple[str, str]]:
    """Return (root of the mount, mount point) of the controller's file systems."""
    found = []
    for line in (read_text(root / "proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), after.split()[:3]
        if kind == ("cgroup2" if version == 2 else "cgroup") and (
            version == 2 or controller in options.split(",")
        ):
            found.append((fields[3], fields[4]))
    return found
