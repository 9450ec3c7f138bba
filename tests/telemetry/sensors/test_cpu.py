"""The CPU's sensor, on trees as different kernels lay them out, and against `psutil` here."""

from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from deepseek.core.load import DeviceLoad
from deepseek.telemetry.sensors.cpu import CpuSensor, usable_cpus

GIB = 1 << 30
MEMINFO = f"MemTotal: {16 * GIB // 1024} kB\nMemFree: 9 kB\nMemAvailable: {10 * GIB // 1024} kB"
CGROUP_2 = {
    "proc/self/cgroup": "0::/pods/worker",
    "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw",
}
CGROUP_1 = {
    "proc/self/cgroup": "8:memory:/docker/abc\n7:cpu,cpuacct:/docker/abc\n0::/",
    "proc/self/mountinfo": (
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
        "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "36 31 0:33 /docker/abc /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
    ),
}


class Machine:
    """A tree of the kernel's files, and a clock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now_s = 100.0

    def write(self, files: Mapping[str, str | int]) -> None:
        for name, content in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")

    def sensor(self, *cpus: int) -> CpuSensor:
        return CpuSensor(cpus or (0, 1), root=self.root, clock=lambda: self.now_s)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def stat(*cpus: str) -> dict[str, str | int]:
    lines = [f"cpu{number} {ticks}" for number, ticks in enumerate(cpus) if ticks]
    return {"proc/stat": "\n".join(["cpu  1 2 3 4 5 6 7 8 9 10", *lines, "intr 1 2 3", "ctxt 4"])}


def test_a_machine_that_tells_nothing_is_unknown_not_wrong(machine: Machine) -> None:
    sensor = machine.sensor()
    assert sensor.read() == DeviceLoad()
    assert sensor.read() == DeviceLoad()


# utilization: user nice system idle iowait irq softirq steal guest guest_nice


def test_utilization_is_of_the_pools_processors_since_the_last_reading(machine: Machine) -> None:
    machine.write(stat("100 0 0 900 0 0 0 0 0 0", "500 0 0 500 0 0 0 0 0 0", "0 0 0 9 0 0 0 0"))
    sensor, other = machine.sensor(0, 1), machine.sensor(2)
    assert sensor.read().utilization is None
    assert other.read().utilization is None
    machine.write(stat("160 5 5 930 0 0 0 0 0 0", "520 0 0 580 0 0 0 0 0 0", "0 0 0 109 0 0 0 0"))
    assert sensor.read().utilization == pytest.approx((70 + 20) / 200)
    assert other.read().utilization == 0.0


@pytest.mark.parametrize(
    ("later", "utilization"),
    [
        pytest.param("10 0 0 0 90 0 0 0 0 0", 0.1, id="waiting for a disk is idle"),
        pytest.param("10 0 0 70 0 0 0 20 0 0", 0.3, id="stolen time is lost"),
        pytest.param("40 0 0 60 0 0 0 0 40 0", 0.4, id="a guest's time counts once"),
        pytest.param("5 5 5 75 0 5 5 0 0 0", 0.25, id="interrupts and niceness count"),
        pytest.param("0 0 0 0 0 0 0 0 0 0", None, id="no time has passed"),
    ],
)
def test_utilization_counts(machine: Machine, later: str, utilization: float | None) -> None:
    start = [1000, 200, 300, 4000, 500, 60, 70, 80, 90, 10]
    machine.write(stat(" ".join(map(str, start))))
    sensor = machine.sensor(0)
    sensor.read()
    machine.write(
        stat(" ".join(str(a + int(b)) for a, b in zip(start, later.split(), strict=True)))
    )
    found = sensor.read().utilization
    assert found == (None if utilization is None else pytest.approx(utilization))


def test_a_processor_that_goes_offline_does_not_lead_out_of_bounds(machine: Machine) -> None:
    machine.write(stat("900 0 0 100 0 0 0 0 0 0", "10 0 0 990 0 0 0 0 0 0"))
    sensor = machine.sensor()
    sensor.read()
    machine.write(stat("950 0 0 150 0 0 0 0 0 0", ""))
    assert sensor.read().utilization is None
    machine.write(stat("980 0 0 180 0 0 0 0 0 0", ""))
    assert sensor.read().utilization == pytest.approx(0.5)


# memory


def test_memory_is_the_machines_without_a_limit(machine: Machine) -> None:
    machine.write({"proc/meminfo": MEMINFO})
    load = machine.sensor().read()
    assert (load.memory_used_bytes, load.memory_total_bytes) == (6 * GIB, 16 * GIB)


def test_memory_honours_a_limit_of_version_2(machine: Machine) -> None:
    machine.write({"proc/meminfo": MEMINFO, **CGROUP_2})
    group = "sys/fs/cgroup/pods/worker"
    machine.write(
        {
            f"{group}/memory.max": 4 * GIB,
            f"{group}/memory.current": 3 * GIB,
            f"{group}/memory.stat": f"anon 5\nfile 7\ninactive_file {GIB}",
        }
    )
    load = machine.sensor().read()
    assert (load.memory_used_bytes, load.memory_total_bytes) == (2 * GIB, 4 * GIB)


def test_memory_honours_the_limit_of_a_group_above(machine: Machine) -> None:
    machine.write({"proc/meminfo": MEMINFO, **CGROUP_2})
    machine.write(
        {
            "sys/fs/cgroup/pods/worker/memory.max": "max",
            "sys/fs/cgroup/pods/worker/memory.current": GIB,
            "sys/fs/cgroup/pods/memory.max": 8 * GIB,
            "sys/fs/cgroup/pods/memory.current": 7 * GIB,
        }
    )
    load = machine.sensor().read()
    assert (load.memory_used_bytes, load.memory_total_bytes) == (7 * GIB, 8 * GIB)


def test_memory_honours_a_limit_of_version_1_whose_mount_begins_at_the_container(
    machine: Machine,
) -> None:
    machine.write({"proc/meminfo": MEMINFO, **CGROUP_1})
    machine.write(
        {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 2 * GIB,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": GIB,
            "sys/fs/cgroup/memory/memory.stat": f"inactive_file 0\ntotal_inactive_file {GIB // 4}",
        }
    )
    load = machine.sensor().read()
    assert (load.memory_used_bytes, load.memory_total_bytes) == (GIB * 3 // 4, 2 * GIB)


def test_a_limit_above_the_machines_memory_is_none(machine: Machine) -> None:
    machine.write({"proc/meminfo": MEMINFO, **CGROUP_1})
    machine.write(
        {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": GIB,
        }
    )
    assert machine.sensor().read().memory_total_bytes == 16 * GIB


def test_the_machine_counts_where_it_has_less_left_than_the_group(machine: Machine) -> None:
    machine.write({"proc/meminfo": MEMINFO.replace(f"{10 * GIB // 1024}", "1024"), **CGROUP_2})
    machine.write(
        {
            "sys/fs/cgroup/pods/worker/memory.max": 4 * GIB,
            "sys/fs/cgroup/pods/worker/memory.current": GIB,
        }
    )
    assert machine.sensor().read().memory_total_bytes == 16 * GIB


# clocks


def test_clocks_are_the_mean_of_the_pools_processors(machine: Machine) -> None:
    for cpu, current in ((0, 3_000_000), (1, 2_000_000), (2, 900_000)):
        directory = f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
        machine.write({f"{directory}/scaling_cur_freq": current})
        machine.write({f"{directory}/cpuinfo_max_freq": 3_600_000})
    load = machine.sensor(0, 1).read()
    assert (load.clock_mhz, load.clock_max_mhz) == (2500.0, 3600.0)
    assert load.clock_ratio == pytest.approx(2500 / 3600)


def test_a_virtual_machine_may_tell_its_clock_but_not_the_highest(machine: Machine) -> None:
    machine.write(
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU\ncpu MHz\t\t: 2600.5\n\n"
            "processor\t: 1\ncpu MHz\t\t: 1000.0\n"
        }
    )
    load = machine.sensor(0).read()
    assert (load.clock_mhz, load.clock_max_mhz, load.clock_ratio) == (2600.5, None, None)


# temperature


def test_the_hottest_of_the_processors_thermometers_counts(machine: Machine) -> None:
    zones = [("acpitz", 99_000), ("x86_pkg_temp", 61_000), ("x86_pkg_temp", 64_500)]
    for number, (kind, temperature) in enumerate(zones):
        zone = f"sys/class/thermal/thermal_zone{number}"
        machine.write({f"{zone}/type": kind, f"{zone}/temp": temperature})
    assert machine.sensor().read().temperature_c == 64.5


def test_a_chips_own_driver_tells_where_there_is_no_zone(machine: Machine) -> None:
    machine.write({"sys/class/hwmon/hwmon0/name": "nvme", "sys/class/hwmon/hwmon0/temp1_input": 9})
    machine.write({"sys/class/hwmon/hwmon1/name": "k10temp"})
    machine.write({"sys/class/hwmon/hwmon1/temp1_input": 70_250})
    machine.write({"sys/class/hwmon/hwmon1/temp3_input": 55_000})
    assert machine.sensor().read().temperature_c == 70.25


def test_a_thermometer_that_cannot_be_read_is_unknown(machine: Machine) -> None:
    machine.write({"sys/class/thermal/thermal_zone0/type": "cpu-thermal"})
    (machine.root / "sys/class/thermal/thermal_zone0/temp").mkdir()  # any error of the system
    assert machine.sensor().read().temperature_c is None


# throttling


def throttle_counts(cpu: int, *, core: int, package: int) -> dict[str, int]:
    directory = f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle"
    return {
        f"{directory}/core_throttle_count": core,
        f"{directory}/package_throttle_count": package,
    }


def test_heat_throttles_while_its_counters_grow(machine: Machine) -> None:
    machine.write(throttle_counts(0, core=5, package=7))
    machine.write(throttle_counts(1, core=0, package=7))
    sensor = machine.sensor(0)
    assert sensor.read().is_throttled is None
    machine.write(throttle_counts(1, core=9, package=7))  # another pool's processor
    assert sensor.read().is_throttled is False
    machine.write(throttle_counts(0, core=5, package=8))
    assert sensor.read().is_throttled is True
    assert sensor.read().is_throttled is False


@pytest.mark.parametrize(
    ("cgroup", "path"),
    [
        (CGROUP_2, "sys/fs/cgroup/pods/worker/cpu.stat"),
        (CGROUP_2, "sys/fs/cgroup/pods/cpu.stat"),
        (CGROUP_1, "sys/fs/cgroup/cpu/cpu.stat"),
    ],
    ids=["version 2", "a group above", "version 1"],
)
def test_a_quota_throttles_while_its_counter_grows(
    machine: Machine, cgroup: dict[str, str], path: str
) -> None:
    machine.write({**cgroup, path: "nr_periods 100\nnr_throttled 3\nthrottled_usec 10"})
    sensor = machine.sensor()
    assert sensor.read().is_throttled is None
    machine.write({path: "nr_periods 105\nnr_throttled 4\nthrottled_usec 20"})
    assert sensor.read().is_throttled is True
    assert sensor.read().is_throttled is None, "heat is not counted here: it may throttle or not"


# power


def package(number: int, *, energy_uj: int, name: str | None = None) -> dict[str, str | int]:
    zone = f"sys/class/powercap/intel-rapl:{number}"
    return {
        f"{zone}/name": name or f"package-{number}",
        f"{zone}/energy_uj": energy_uj,
        f"{zone}/max_energy_range_uj": 1_000_000_000,
        f"{zone}/constraint_0_power_limit_uw": 150_000_000,
        f"{zone}:0/name": "core",
        f"{zone}:0/energy_uj": energy_uj // 2,
    }


def test_power_is_the_packages_energy_over_time(machine: Machine) -> None:
    machine.write(package(0, energy_uj=100_000_000))
    machine.write(package(1, energy_uj=999_000_000))
    machine.write(package(2, energy_uj=0, name="psys"))
    sensor = machine.sensor()
    assert sensor.read().power_w is None
    machine.now_s += 2
    machine.write(package(0, energy_uj=180_000_000))
    machine.write(package(1, energy_uj=19_000_000))  # began again at its range
    load = sensor.read()
    assert load.power_w == pytest.approx((80 + 20) / 2)
    assert load.power_limit_w == 300.0


def test_power_is_unknown_where_one_package_is_forbidden(machine: Machine) -> None:
    machine.write(package(0, energy_uj=1))
    machine.write(package(1, energy_uj=1))
    sensor = machine.sensor()
    sensor.read()
    (machine.root / "sys/class/powercap/intel-rapl:1/energy_uj").unlink()
    for _ in range(2):
        machine.now_s += 1
        assert sensor.read().power_w is None


# this machine


def test_this_machines_memory_is_what_psutil_says_or_a_groups_limit() -> None:
    load = CpuSensor(usable_cpus()).read()
    assert load.memory_total_bytes is not None
    assert load.memory_used_bytes is not None
    virtual = psutil.virtual_memory()
    assert load.memory_total_bytes <= virtual.total
    if load.memory_total_bytes == virtual.total:
        used = virtual.total - virtual.available
        assert load.memory_used_bytes == pytest.approx(used, abs=virtual.total * 0.05)


def test_this_machines_utilization_is_what_psutil_says() -> None:
    cpus = usable_cpus()
    sensor = CpuSensor(cpus)

    def ticks() -> tuple[float, float]:
        times = psutil.cpu_times(percpu=True)
        if len(times) < cpus[-1] + 1:
            pytest.skip("psutil does not number processors where some are offline")
        totals = [sum(times[cpu][:8]) for cpu in cpus]
        return sum(totals) - sum(times[c].idle + times[c].iowait for c in cpus), sum(totals)

    before = ticks()
    sensor.read()
    while (after := ticks())[1] - before[1] < 0.6:
        pass
    expected = (after[0] - before[0]) / (after[1] - before[1])
    assert sensor.read().utilization == pytest.approx(expected, abs=0.15)
