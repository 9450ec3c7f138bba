"""The sampler, with sensors that misbehave as drivers do."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deepseek.core.load import DeviceLoad
from deepseek.telemetry.sampling import STALE_AFTER_INTERVALS, UNKNOWN, DeviceSampler
from deepseek.telemetry.sensors.base import SensorUnavailable

INTERVAL_S = 0.001
STALE_AFTER_S = INTERVAL_S * STALE_AFTER_INTERVALS
SOURCE = Path(__file__).parents[2] / "src"


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


class Scripted:
    """A sensor that does one thing after another, then the last one for ever."""

    def __init__(self, *acts: Callable[[], DeviceLoad]) -> None:
        self._acts = list(acts)
        self.num_reads = 0

    def read(self) -> DeviceLoad:
        self.num_reads += 1
        return (self._acts.pop(0) if len(self._acts) > 1 else self._acts[0])()


@pytest.fixture
def sampler_of() -> Iterator[Callable[..., DeviceSampler]]:
    made: list[DeviceSampler] = []

    def make(sensor: Scripted, clock: Clock) -> DeviceSampler:
        sampler = DeviceSampler(sensor, interval_s=INTERVAL_S, clock=clock)
        made.append(sampler)
        sampler.start()
        return sampler

    yield make
    for sampler in made:
        sampler.stop()


def warm() -> DeviceLoad:
    return DeviceLoad(temperature_c=61.0)


def broken() -> DeviceLoad:
    raise ZeroDivisionError("the driver divided by zero")


def absent() -> DeviceLoad:
    raise SensorUnavailable("there is no such device")


def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread, for the test's time limit at most."""
    while not condition():
        time.sleep(INTERVAL_S)


def test_the_latest_reading_is_at_hand(sampler_of: Callable[..., DeviceSampler]) -> None:
    clock = Clock()
    sampler = sampler_of(Scripted(DeviceLoad, warm), clock)
    until(lambda: sampler.latest(clock.now_s) == warm())


def test_before_the_first_reading_all_is_unknown() -> None:
    clock = Clock()
    sampler = DeviceSampler(Scripted(warm), interval_s=1.0, clock=clock)
    assert sampler.latest(clock.now_s) == UNKNOWN


def test_a_sensor_that_raises_is_logged_once_per_kind_and_recovers(
    sampler_of: Callable[..., DeviceSampler], caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    sensor = Scripted(warm, broken, broken, absent, absent, broken, absent, warm)
    sampler = sampler_of(sensor, clock)
    until(lambda: sensor.num_reads > 10)
    assert sampler.latest(clock.now_s) == warm()
    failures = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(failures) == 2
    assert failures[0].exc_info, "a failure that nobody foresaw comes with its traceback"
    assert "there is no such device" in failures[1].getMessage()
    assert not failures[1].exc_info


def test_a_sensor_that_raises_reads_as_unknown(sampler_of: Callable[..., DeviceSampler]) -> None:
    clock = Clock()
    sensor = Scripted(warm, broken)
    sampler = sampler_of(sensor, clock)
    until(lambda: sensor.num_reads > 2)
    assert sampler.latest(clock.now_s) == UNKNOWN


def test_a_sensor_that_hangs_reads_as_unknown_after_its_age_and_blocks_nobody(
    sampler_of: Callable[..., DeviceSampler], caplog: pytest.LogCaptureFixture
) -> None:
    clock, release = Clock(), threading.Event()

    def hang() -> DeviceLoad:
        release.wait()
        return DeviceLoad(temperature_c=99.0)

    sensor = Scripted(warm, hang)
    sampler = sampler_of(sensor, clock)
    until(lambda: sensor.num_reads == 2)
    assert sampler.latest(clock.now_s + 0.9 * STALE_AFTER_S) == warm()
    clock.now_s += 1.1 * STALE_AFTER_S
    assert [sampler.latest(clock.now_s) for _ in range(3)] == [UNKNOWN] * 3
    assert [r.getMessage() for r in caplog.records if "does not answer" in r.getMessage()] == [
        "the device's sensor does not answer; its signals are unknown"
    ]
    release.set()  # what comes back now was begun long ago; the next reading is fresh
    until(lambda: sampler.latest(clock.now_s).temperature_c == 99.0)


def test_a_reading_counts_as_old_as_its_beginning(
    sampler_of: Callable[..., DeviceSampler],
) -> None:
    clock, second = Clock(), threading.Event()

    def slow() -> DeviceLoad:
        clock.now_s += 2 * STALE_AFTER_S
        return warm()

    def wait() -> DeviceLoad:
        second.set()
        threading.Event().wait(0.05)
        return UNKNOWN

    sampler = sampler_of(Scripted(slow, wait), clock)
    assert second.wait(5)
    assert sampler.latest(clock.now_s) == UNKNOWN


def test_a_worker_exits_while_its_sensor_hangs() -> None:
    program = f"""
import sys, threading
sys.path.insert(0, {str(SOURCE)!r})
from deepseek.telemetry.sampling import DeviceSampler
entered = threading.Event()
class Hanging:
    def read(self):
        entered.set()
        threading.Event().wait()
sampler = DeviceSampler(Hanging(), interval_s=0.01)
sampler.start()
entered.wait()
sampler.stop()
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=8, capture_output=True)
    assert done.returncode == 0
    assert done.stderr == b""


def test_a_stopped_sampler_reads_no_more(sampler_of: Callable[..., DeviceSampler]) -> None:
    clock, sensor = Clock(), Scripted(warm)
    others = set(threading.enumerate())
    sampler = sampler_of(sensor, clock)
    until(lambda: sensor.num_reads > 0)
    sampler.stop()
    until(lambda: set(threading.enumerate()) <= others)
    before = sensor.num_reads
    time.sleep(10 * INTERVAL_S)
    assert sensor.num_reads == before
