"""Every kind of device gets its sensor."""

import pytest

from deepseek.telemetry.sensors.base import DeviceSensor, SensorUnavailable
from deepseek.telemetry.sensors.cpu import CpuSensor, usable_cpus
from deepseek.telemetry.sensors.nvidia import NvidiaSensor
from deepseek.telemetry.sensors.registry import make_sensor


@pytest.mark.parametrize(
    ("device", "cls"), [("cpu", CpuSensor), ("cuda", NvidiaSensor), ("cuda:1", NvidiaSensor)]
)
def test_a_device_gets_the_sensor_of_its_kind(device: str, cls: type[DeviceSensor]) -> None:
    assert type(make_sensor(device)) is cls


def test_a_cpu_pools_sensor_reads_the_processors_that_it_is_told() -> None:
    assert make_sensor("cpu", [usable_cpus()[0]]).read().memory_use is not None


def test_a_device_that_no_sensor_knows_says_so() -> None:
    with pytest.raises(SensorUnavailable, match="tpu"):
        make_sensor("tpu:0").read()
