"""Reads a sensor beside the step loop, so that no step ever waits for one."""

import logging
import threading
import time
from collections.abc import Callable

from deepseek.core.load import DeviceLoad
from deepseek.telemetry.sensors.base import DeviceSensor, SensorUnavailable

logger = logging.getLogger(__name__)

STALE_AFTER_INTERVALS = 3.0
UNKNOWN = DeviceLoad()


class DeviceSampler:
    """Keeps a device's latest reading; a sensor may raise, be slow or never come back.

    The thread is a daemon and is never waited for: a sensor that hangs in the driver holds up
    neither a step nor the worker's exit. While it hangs, the last reading ages, and counts as
    unknown once it is older than `STALE_AFTER_INTERVALS` intervals.
    """

    def __init__(
        self,
        sensor: DeviceSensor,
        *,
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read `sensor` every `interval_s` once started; `clock` is the one of `latest`."""
        self._sensor = sensor
        self._interval_s = interval_s
        self._stale_after_s = interval_s * STALE_AFTER_INTERVALS
        self._clock = clock
        self._stopping = threading.Event()
        self._sample = (clock(), UNKNOWN)
        self._logged: set[object] = set()

    def start(self) -> None:
        """Begin to read, in a thread of its own; called once."""
        threading.Thread(target=self._run, name="device-sensor", daemon=True).start()

    def stop(self) -> None:
        """Let the thread end after the reading that it is at, without waiting for that."""
        self._stopping.set()

    def latest(self, now_s: float) -> DeviceLoad:
        """Return the last reading, all unknown where it failed or is too old. Never blocks."""
        begun_s, load = self._sample  # one reference, replaced as a whole
        if now_s - begun_s <= self._stale_after_s:
            return load
        self._log_once("stale", "the device's sensor does not answer; its signals are unknown")
        return UNKNOWN

    def _run(self) -> None:
        while not self._stopping.is_set():
            # A reading is as old as its beginning: what it says may be from then.
            begun_s = self._clock()
            self._sample = (begun_s, self._read())
            self._stopping.wait(self._interval_s)

    def _read(self) -> DeviceLoad:
        try:
            return self._sensor.read()
        except SensorUnavailable as error:
            kind = (SensorUnavailable, type(error.__cause__))
            self._log_once(kind, f"the device's signals are unknown: {error}")
        except Exception as error:  # noqa: BLE001 a foreign driver may raise anything; serving goes on
            message = "the device's sensor failed; its signals are unknown"
            self._log_once(type(error), message, error=error)
        return UNKNOWN

    def _log_once(self, kind: object, message: str, *, error: Exception | None = None) -> None:
        """Say each kind of failure once: a sensor that is broken is so twice a second."""
        if kind not in self._logged:
            self._logged.add(kind)
            logger.warning(message, exc_info=error)
