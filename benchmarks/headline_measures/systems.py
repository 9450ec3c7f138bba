"""The two ways to serve the same four models on the same two cores.

*Separate*: what users have today. Every model has a server process of its own with a fixed batch,
and an equal slice of the machine, as a container's CPU limit makes it: two processes on each of the
two cores, each with half of its time at most. The engine is ours in both, so that only scheduling
differs.

*Shared*: one worker with all models on both cores; the critical one has a reservation.
"""

import os
from pathlib import Path
from typing import Any

import yaml
from serving_measures.platform import MeasurementFailed

CRITICAL = "chat"
MODELS = (CRITICAL, "assistant", "embed", "classify")

TTFT_S, ITL_S = 1.0, 0.1
"""Deadlines: of a first token or an embedding, and of the mean time between tokens."""
SLICE_CORES = 0.5
"""Of each of the four."""

_SOURCES = {
    "chat": "smollm2-135m",
    "assistant": "smollm2-135m",
    "embed": "minilm-l6",
    "classify": "sentiment",
}
_FIXED = {"policy": "fixed", "minBatchSize": 8, "maxBatchSize": 8, "maxWaitTime": "100ms"}
_KV = "256MiB"


def write_separate(path: Path) -> Path:
    """Write the deployment of four pools and return its path."""
    first, second = _two_cores()
    cores = {"chat": first, "embed": first, "assistant": second, "classify": second}
    models = {name: {**_model(name), "pool": name, "qos": dict(_FIXED)} for name in MODELS}
    pools = {
        name: {"device": "cpu", "cpus": str(cores[name]), "num_threads": 1, "kv_cache_bytes": _KV}
        for name in MODELS
    }
    return _write(path, {"models": models, "pools": pools})


def write_plain(path: Path) -> Path:
    """Write the deployment of one pool without promises: what each model can do alone."""
    return _write_one_pool(path, {name: _model(name) for name in MODELS})


def write_shared(path: Path) -> Path:
    """Write the deployment of one pool with a critical model and return its path."""
    deadline = {"ttft": f"{TTFT_S:g}s", "itl": f"{1000 * ITL_S:g}ms"}
    models = {name: {**_model(name), "qos": {"deadline": deadline}} for name in MODELS}
    models[CRITICAL]["qos"] |= {"priority": "critical", "reservedShare": 0.9}
    return _write_one_pool(path, models)


def _write_one_pool(path: Path, models: dict[str, Any]) -> Path:
    cores = ",".join(map(str, _two_cores()))
    pools = {"default": {"device": "cpu", "cpus": cores, "kv_cache_bytes": _KV}}
    return _write(path, {"models": models, "pools": pools})


def first_core() -> int:
    """Return the core that the critical model's own server shares with one other."""
    return _two_cores()[0]


def _model(name: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"source": _SOURCES[name], "max_queue": 4096}
    if _SOURCES[name] == "smollm2-135m":
        settings["quantization"] = "int8"
    return settings


def _write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def _two_cores() -> tuple[int, int]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise MeasurementFailed("one core: the separate servers need two to be sliced")
    return cores[0], cores[1]
