"""An NVIDIA GPU, through the driver's management library (NVML).

Loaded and opened in the first reading, which a sampler does beside the step loop: a driver that
hangs must not hold up a worker's start.
"""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from deepseek.core.load import DeviceLoad
from deepseek.telemetry.sensors.base import SensorUnavailable

_T = TypeVar("_T")


class NvidiaSensor:
    """Reads one GPU; a field that it does not support is unknown by itself."""

    def __init__(self, index: int = 0, *, uuid: str | None = None) -> None:
        """Watch the GPU of this UUID, as the tensor library tells it.

        Without one, it is torch's `cuda:index`: the index among the GPUs that
        `CUDA_VISIBLE_DEVICES` names. CUDA counts the fastest first where a machine has GPUs of
        several kinds (`CUDA_DEVICE_ORDER`), NVML by bus: there, only the UUID is certain.
        """
        self._index = index
        self._uuid = uuid
        self._nvml: Any = None
        self._device: Any = None

    def read(self) -> DeviceLoad:
        """Return what the driver tells now; see `DeviceSensor.read`."""
        nvml = self._nvml = self._nvml or _load_library()
        try:
            if self._device is None:
                nvml.nvmlInit()
                self._device = self._find()
            return self._read()
        except nvml.NVMLError as error:
            self._device = None  # opened anew: it may be back, or the driver loaded again
            raise SensorUnavailable(f"NVML: {error}") from error

    def _find(self) -> Any:
        nvml = self._nvml
        if self._uuid is not None:
            return nvml.nvmlDeviceGetHandleByUUID(_with_prefix(self._uuid))
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        uuids = [nvml.nvmlDeviceGetUUID(handle) for handle in handles]
        return nvml.nvmlDeviceGetHandleByUUID(visible_uuid(self._index, uuids, os.environ))

    def _read(self) -> DeviceLoad:
        nvml = self._nvml
        use = self._told(nvml.nvmlDeviceGetUtilizationRates)
        memory = self._told(nvml.nvmlDeviceGetMemoryInfo)
        reasons = self._told(nvml.nvmlDeviceGetCurrentClocksEventReasons)
        return DeviceLoad(
            utilization=use and use.gpu / 100,
            memory_used_bytes=memory and memory.used,
            memory_total_bytes=memory and memory.total,
            memory_bandwidth_utilization=use and use.memory / 100,
            temperature_c=self._told(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            is_throttled=None if reasons is None else bool(reasons & _slowing_reasons(nvml)),
            power_w=_watts(self._told(nvml.nvmlDeviceGetPowerUsage)),
            power_limit_w=_watts(self._told(nvml.nvmlDeviceGetEnforcedPowerLimit)),
            clock_mhz=self._told(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            clock_max_mhz=self._told(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_SM),
        )

    def _told(self, function: Callable[..., _T], *arguments: int) -> _T | None:
        """Return what the driver says, None where this GPU, driver or user is not told."""
        nvml = self._nvml
        try:
            return function(self._device, *arguments)
        except nvml.NVMLError as error:
            if error.value in (
                nvml.NVML_ERROR_NOT_SUPPORTED,
                nvml.NVML_ERROR_NO_PERMISSION,
                nvml.NVML_ERROR_FUNCTION_NOT_FOUND,  # the driver is older than the call
            ):
                return None
            raise


def visible_uuid(index: int, uuids: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return the UUID of CUDA's device `index`; `uuids` are all GPUs, in the order of the bus.

    `CUDA_VISIBLE_DEVICES` holds indices, UUIDs or beginnings of UUIDs; what follows the first that
    fits no GPU is ignored, as CUDA does. Raises `SensorUnavailable` where there is no such device.
    """
    setting = environ.get("CUDA_VISIBLE_DEVICES")
    visible = list(uuids) if setting is None else []
    for token in (setting or "").split(","):
        found = _named(token.strip(), uuids)
        if found is None:
            break
        visible.append(found)
    if index >= len(visible):
        raise SensorUnavailable(
            f"there is no GPU cuda:{index} among {len(visible)} (CUDA_VISIBLE_DEVICES: {setting})"
        )
    return visible[index]


def _named(token: str, uuids: Sequence[str]) -> str | None:
    if token.isdigit():
        return uuids[int(token)] if int(token) < len(uuids) else None
    if token.startswith("MIG-"):
        return token  # a slice of a GPU has a UUID of its own, which NVML knows
    return next((uuid for uuid in uuids if token and uuid.startswith(token)), None)


def _with_prefix(uuid: str) -> str:
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def _slowing_reasons(nvml: Any) -> int:
    """Heat and power; not clocks that somebody has set, nor an idle GPU's low ones."""
    return int(
        nvml.nvmlClocksEventReasonSwThermalSlowdown
        | nvml.nvmlClocksEventReasonHwThermalSlowdown
        | nvml.nvmlClocksEventReasonSwPowerCap
        | nvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
        | nvml.nvmlClocksEventReasonHwSlowdown
    )


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _load_library() -> Any:
    """Import NVML's bindings, which need the library only when they are used."""
    try:
        return importlib.import_module("pynvml")
    except ModuleNotFoundError as error:
        raise SensorUnavailable("nvidia-ml-py is not installed") from error
