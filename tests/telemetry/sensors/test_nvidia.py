"""The NVIDIA sensor: on a real GPU, and through NVML's bindings on a library of the test's own.

The library is compiled here and loaded by a process of its own, as the driver's would be.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import util
from pathlib import Path

import pytest

from deepseek.core.load import DeviceLoad
from deepseek.telemetry.sampling import UNKNOWN, DeviceSampler
from deepseek.telemetry.sensors.base import SensorUnavailable
from deepseek.telemetry.sensors.nvidia import NvidiaSensor, visible_uuid
from deepseek.telemetry.sensors.registry import make_sensor

LIBRARY = Path(__file__).with_name("nvml_double.c")
SOURCE = Path(__file__).parents[3] / "src"
FIRST, SECOND = (
    "GPU-11111111-aaaa-4000-8000-000000000000",
    "GPU-22222222-bbbb-4000-8000-000000000000",
)
EVERYTHING = DeviceLoad(
    utilization=0.8,
    memory_used_bytes=20 << 30,
    memory_total_bytes=80 << 30,
    memory_bandwidth_utilization=0.35,
    temperature_c=64,
    is_throttled=False,
    power_w=412.5,
    power_limit_w=700.0,
    clock_mhz=1500,
    clock_max_mhz=1980,
)
NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, GPU_IS_LOST = 3, 4, 9, 15
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from dataclasses import asdict
from deepseek.telemetry.sensors.base import SensorUnavailable
from deepseek.telemetry.sensors.nvidia import NvidiaSensor
sensor = NvidiaSensor(int(sys.argv[2]), uuid=sys.argv[3] or None)
try:
    print(json.dumps(asdict(sensor.read())))
except SensorUnavailable as error:
    print(json.dumps(str(error)))
"""

Read = Callable[..., dict[str, float | None] | str]


def compiled(directory: Path, *options: str) -> Path:
    compiler = shutil.which("cc")
    assert compiler, "the engine needs a compiler, and so does this test"
    output = directory / "libnvidia-ml.so.1"
    command = [compiler, "-shared", "-fPIC", "-O1", *options, "-o", str(output), str(LIBRARY)]
    subprocess.run(command, check=True)
    return directory


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def read(driver: Path) -> Read:
    """Return a call that reads a sensor in a process with that driver, and what it found."""

    def call(
        index: int = 0, *, uuid: str = "", library: Path = driver, **environ: str
    ) -> dict[str, float | None] | str:
        kept = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(SOURCE), str(index), uuid],
            env={**kept, "LD_LIBRARY_PATH": str(library), **environ},
            check=True,
            capture_output=True,
        )
        found: dict[str, float | None] | str = json.loads(done.stdout)
        return found

    return call


def test_every_field_is_in_the_units_of_a_load(read: Read) -> None:
    assert read() == asdict(EVERYTHING)


def test_an_index_and_a_uuid_name_a_gpu(read: Read) -> None:
    assert read(1)["utilization"] == 0.81  # type: ignore[index]
    assert read(0, CUDA_VISIBLE_DEVICES="1")["utilization"] == 0.81  # type: ignore[index]
    assert read(0, uuid=SECOND)["utilization"] == 0.81  # type: ignore[index]
    assert read(0, uuid=SECOND.removeprefix("GPU-"))["utilization"] == 0.81  # type: ignore[index]


@pytest.mark.parametrize(
    ("call", "code", "fields"),
    [
        (
            "nvmlDeviceGetUtilizationRates",
            NOT_SUPPORTED,
            {"utilization", "memory_bandwidth_utilization"},
        ),
        ("nvmlDeviceGetMemoryInfo", NOT_SUPPORTED, {"memory_used_bytes", "memory_total_bytes"}),
        ("nvmlDeviceGetTemperature", NO_PERMISSION, {"temperature_c"}),
        ("nvmlDeviceGetPowerUsage", NOT_SUPPORTED, {"power_w"}),
        ("nvmlDeviceGetEnforcedPowerLimit", NOT_SUPPORTED, {"power_limit_w"}),
        ("nvmlDeviceGetClockInfo", NO_PERMISSION, {"clock_mhz"}),
        ("nvmlDeviceGetMaxClockInfo", NOT_SUPPORTED, {"clock_max_mhz"}),
        ("nvmlDeviceGetCurrentClocksEventReasons", NOT_SUPPORTED, {"is_throttled"}),
    ],
)
def test_what_the_gpu_does_not_support_is_unknown_by_itself(
    read: Read, call: str, code: int, fields: set[str]
) -> None:
    assert read(NVML_FAIL=f"{call}={code}") == {**asdict(EVERYTHING), **dict.fromkeys(fields)}


def test_a_driver_older_than_a_call_leaves_that_unknown(read: Read, tmp_path: Path) -> None:
    old = compiled(tmp_path, "-DOLD_DRIVER")
    assert read(library=old) == {**asdict(EVERYTHING), "is_throttled": None}


@pytest.mark.parametrize(
    ("reasons", "is_throttled"),
    [
        pytest.param("0x1", False, id="idle"),
        pytest.param("0x2", False, id="clocks that somebody set"),
        pytest.param("0x4", True, id="power cap"),
        pytest.param("0x8", True, id="hardware slow-down"),
        pytest.param("0x21", True, id="heat, and idle"),
        pytest.param("0x40", True, id="heat, by hardware"),
        pytest.param("0x80", True, id="power brake"),
        pytest.param("0x110", False, id="boost in step with others, display"),
    ],
)
def test_heat_and_power_throttle(read: Read, reasons: str, is_throttled: bool) -> None:
    assert read(NVML_REASONS=reasons)["is_throttled"] is is_throttled  # type: ignore[index]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (f"nvmlInitWithFlags={DRIVER_NOT_LOADED}", "NVML: Driver Not Loaded"),
        (f"nvmlDeviceGetMemoryInfo={GPU_IS_LOST}", "NVML: GPU is lost"),
    ],
)
def test_a_gpu_that_is_gone_is_said_in_one_line(read: Read, failure: str, message: str) -> None:
    assert read(NVML_FAIL=failure) == message


def test_a_uuid_that_does_not_exist_is_said(read: Read) -> None:
    assert read(uuid="GPU-33333333") == "NVML: Not Found"


def test_a_gpu_that_comes_back_is_read_again(driver: Path) -> None:
    program = PROGRAM.split("try:")[0] + (
        "import os\n"
        "for failure in ('', 'nvmlDeviceGetMemoryInfo=15', ''):\n"
        "    os.environ['NVML_FAIL'] = failure\n"
        "    try: print(sensor.read().memory_total_bytes)\n"
        "    except SensorUnavailable as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(SOURCE), "0", FIRST],
        env={**os.environ, "LD_LIBRARY_PATH": str(driver)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [str(80 << 30), "NVML: GPU is lost", str(80 << 30)]


def test_a_driver_that_hangs_holds_up_neither_start_nor_exit(driver: Path) -> None:
    program = """
import sys, time
sys.path.insert(0, sys.argv[1])
from deepseek.telemetry.sampling import UNKNOWN, DeviceSampler
from deepseek.telemetry.sensors.registry import make_sensor
sampler = DeviceSampler(make_sensor("cuda"), interval_s=0.01)
sampler.start()
time.sleep(0.2)
assert sampler.latest(time.monotonic()) == UNKNOWN
sampler.stop()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(SOURCE)],
        env={**os.environ, "LD_LIBRARY_PATH": str(driver), "NVML_HANG": "nvmlInitWithFlags"},
        timeout=8,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "does not answer" in done.stderr


def test_without_a_driver_there_is_one_warning_and_all_is_unknown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert util.find_spec("pynvml"), "nvidia-ml-py belongs to the `engine` extra"
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a driver")
    sensor = Counting(NvidiaSensor())
    sampler = DeviceSampler(sensor, interval_s=0.001)
    sampler.start()
    while sensor.num_reads < 4:
        time.sleep(0.001)
    sampler.stop()
    assert sampler.latest(time.monotonic()) == UNKNOWN
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [w for w in warnings if "NVML Shared Library Not Found" in w] == warnings[:1]


class Counting:
    """Counts the readings of another sensor."""

    def __init__(self, sensor: NvidiaSensor) -> None:
        self._sensor = sensor
        self.num_reads = 0

    def read(self) -> DeviceLoad:
        try:
            return self._sensor.read()
        finally:
            self.num_reads += 1


@pytest.mark.parametrize(
    ("visible", "index", "uuid"),
    [
        pytest.param(None, 1, SECOND, id="unset: all"),
        pytest.param("1,0", 0, SECOND, id="order"),
        pytest.param("1, 0", 1, FIRST, id="spaces"),
        pytest.param(SECOND, 0, SECOND, id="uuid"),
        pytest.param("GPU-22", 0, SECOND, id="beginning of a uuid"),
        pytest.param("MIG-7", 0, "MIG-7", id="a slice"),
    ],
)
def test_visible_devices_are_counted_as_cuda_does(
    visible: str | None, index: int, uuid: str
) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert visible_uuid(index, [FIRST, SECOND], environ) == uuid


@pytest.mark.parametrize(
    ("visible", "index"), [(None, 2), ("", 0), ("-1", 0), ("0", 1), ("0,7,1", 1), ("GPU-9", 0)]
)
def test_a_device_that_is_not_visible_is_refused(visible: str | None, index: int) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    with pytest.raises(SensorUnavailable, match=f"cuda:{index}"):
        visible_uuid(index, [FIRST, SECOND], environ)


# a real GPU


@pytest.mark.gpu
@pytest.mark.timeout(120)
def test_a_real_gpu_tells_everything_and_shows_work() -> None:
    torch = pytest.importorskip("torch")
    uuid = str(torch.cuda.get_device_properties(0).uuid)
    by_uuid, by_index = make_sensor("cuda:0", uuid=uuid), make_sensor("cuda:0")
    idle = by_uuid.read()
    silent = [name for name, value in asdict(idle).items() if value is None]
    assert silent == ["loop_utilization"], "a data centre's GPU tells all of it"
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    assert idle.memory_total_bytes == pytest.approx(total_bytes, rel=0.05)
    assert idle.clock_ratio is not None
    assert 0 < idle.clock_ratio <= 1
    assert 10 < (idle.temperature_c or 0) < 100

    held = torch.empty(2 << 30, dtype=torch.uint8, device="cuda:0")
    square = torch.randn(8192, 8192, device="cuda:0", dtype=torch.bfloat16)
    until = time.monotonic() + 3
    while time.monotonic() < until:
        for _ in range(20):
            square @ square
        torch.cuda.synchronize()
    busy = by_uuid.read()
    assert (busy.memory_used_bytes or 0) - (idle.memory_used_bytes or 0) >= held.nbytes
    assert (busy.utilization or 0) > 0.8
    assert (busy.power_w or 0) > 1.2 * (idle.power_w or 0)
    # Lower than at rest where the power limit has it so.
    assert 0 < (busy.clock_mhz or 0) <= (busy.clock_max_mhz or 0)
    same = by_index.read()
    assert same.memory_used_bytes == pytest.approx(busy.memory_used_bytes, rel=0.01)


@pytest.mark.gpu
@pytest.mark.timeout(120)
def test_a_reading_of_a_real_gpu_costs_little() -> None:
    sensor = make_sensor("cuda:0")
    sensor.read()  # opens the driver
    started = time.perf_counter()
    for _ in range(20):
        sensor.read()
    mean_s = (time.perf_counter() - started) / 20
    assert mean_s < 0.05, f"a reading takes {mean_s * 1e3:.1f} ms"
