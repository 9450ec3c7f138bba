"""The plug-in point of device sensors; `registry` makes the one that fits a device."""

from typing import Protocol

from deepseek.core.load import DeviceLoad


class SensorUnavailable(Exception):
    """The device tells nothing here, for a reason that is known and said in the message."""


class DeviceSensor(Protocol):
    """Reads one device. Used by one thread only; loads no tensor library."""

    def read(self) -> DeviceLoad:
        """Return what the device tells now; each field that it does not tell is None.

        Utilization, power and throttling of a CPU are over the time since the previous reading, so
        that its first leaves them unknown. May block for milliseconds, and does so only where the
        system makes it wait: a sampler calls it beside the step loop. Changes nothing on the
        device. Raises `SensorUnavailable` where nothing at all can be told, now or ever; the next
        reading tries again.
        """
        ...
