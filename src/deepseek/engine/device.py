"""The device that a worker owns, and how much one step on it may take."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from deepseek.core.errors import ConfigurationError
from deepseek.core.requests import Task
from deepseek.core.wire import ModelSpec, WorkerSpec

DEFAULT_CPU_KV_BYTES = 2 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """Bounds of every step, of each of the pool's models."""

    max_step_tokens: int
    max_encode_tokens: int
    """The same of an encoder, which has no streams to keep at their pace."""
    max_running: int


def step_limits(spec: WorkerSpec, device: str) -> StepLimits:
    """Return the pool's limits, or the device's defaults.

    A CPU is busy with a hundred rows; more only makes every running stream, and every prompt behind
    the first, wait longer: with 192 rows a step, 16 streams of a 135M model had their first tokens
    19 % later, and no more tokens a second. A GPU needs thousands.
    """
    default_tokens, default_encode, default_running = (
        (128, 512, 64) if device == "cpu" else (8192, 8192, 256)
    )
    return StepLimits(
        max_step_tokens=spec.max_step_tokens or default_tokens,
        max_encode_tokens=spec.max_step_tokens or default_encode,
        max_running=spec.max_running or default_running,
    )


def kv_bytes(model: ModelSpec, spec: WorkerSpec, device: str) -> int | None:
    """Return a language model's part of the pool's memory for attention state.

    None on a GPU whose pool does not set it: what the device has left is to be measured.
    """
    total = spec.kv_cache_bytes
    if total is None:
        if device != "cpu":
            return None
        total = DEFAULT_CPU_KV_BYTES
    weights = sum(m.qos.weight for m in spec.models if m.task is Task.GENERATE)
    return int(total * model.qos.weight / weights)


def prepare_device(spec: WorkerSpec) -> str:
    """Choose and configure the device; returns its torch name.

    Raises `ConfigurationError` where the pool names a GPU that is not there.
    """
    if spec.cpus is not None:
        _pin(spec)
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


@contextmanager
def beside_steps(device: str) -> Iterator[None]:
    """Give what this thread has the device do a stream of its own, and wait for it at the end.

    On the stream that steps use, a step would wait for each copy that was queued before it.
    """
    if device == "cpu":
        yield
        return
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        yield
    done = torch.cuda.Event(blocking=True)  # sleeps: the processor is the steps'
    done.record(stream)
    done.synchronize()


def free_bytes(device: str, *, utilization: float) -> int:
    """Return what a GPU has left of the part of its memory that may be used."""
    free, total = torch.cuda.mem_get_info(device)
    return int(free - (1.0 - utilization) * total)


def _pin(spec: WorkerSpec) -> None:
    """Keep this process, and the compute threads it starts later, on the pool's processors."""
    wanted: set[int] = set()
    for part in (spec.cpus or "").split(","):
        first, _, last = part.partition("-")
        wanted.update(range(int(first), int(last or first) + 1))
    missing = wanted - os.sched_getaffinity(0)
    if missing or not wanted:
        usable = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        raise ConfigurationError(
            f"pools.{spec.pool}.cpus: {spec.cpus!r} names processors that this process may not "
            f"use; it may use {usable}",
            param="cpus",
        )
    os.sched_setaffinity(0, wanted)
