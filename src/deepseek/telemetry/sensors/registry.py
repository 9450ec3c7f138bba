"""From a device's name to its sensor."""

from collections.abc import Sequence

from deepseek.core.load import DeviceLoad
from deepseek.telemetry.sensors.base import DeviceSensor, SensorUnavailable
from deepseek.telemetry.sensors.cpu import CpuSensor, usable_cpus
from deepseek.telemetry.sensors.nvidia import NvidiaSensor


def make_sensor(
    device: str, cpus: Sequence[int] | None = None, *, uuid: str | None = None
) -> DeviceSensor:
    """Return the sensor of `cpu`, `cuda` or `cuda:1`; reads nothing of a GPU yet.

    `cpus`: processors of a CPU pool; None: those that this process is pinned to. `uuid`: of the
    GPU, where it is known. A kind of device that no sensor knows gets one that says so.
    """
    kind, _, index = device.partition(":")
    match kind:
        case "cpu":
            return CpuSensor(usable_cpus() if cpus is None else cpus)
        case "cuda":
            return NvidiaSensor(int(index or 0), uuid=uuid)
        case _:
            return NoSensor(device)


class NoSensor:
    """Stands for the sensor of a device that none can read."""

    def __init__(self, device: str) -> None:
        self._device = device

    def read(self) -> DeviceLoad:
        """Raise: nothing is known, and the log shall say why."""
        raise SensorUnavailable(f"no sensor reads devices such as {self._device!r}")
