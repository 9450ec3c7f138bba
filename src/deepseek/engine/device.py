"""The device that a worker owns."""

import os

import torch

from deepseek.core.errors import ConfigurationError
from deepseek.core.wire import WorkerSpec


def prepare_device(spec: WorkerSpec) -> str:
    """Choose and configure the device; returns its torch name.

    Raises `ConfigurationError` where the pool names a GPU that is not there.
    """
    device = spec.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        index = int(device.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            raise ConfigurationError(
                f"pools.{spec.pool}.device: {device!r} does not exist; this machine has "
                f"{torch.cuda.device_count()} GPU(s): use `cpu` or `auto`",
                param="device",
            )
        return device
    torch.set_num_threads(spec.num_threads or len(os.sched_getaffinity(0)))
    return "cpu"
