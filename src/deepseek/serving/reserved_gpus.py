"""Whether the GPUs that a file promises parts of are there, asked without loading torch here."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from deepseek.engine.settings import PoolSettings
from deepseek.serving.settings import ModelSettings

_COUNT = "import torch; print(torch.cuda.device_count())"
_TIMEOUT_S = 120.0
"""For torch's import from a cold disk."""


def absent_gpus(
    models: Mapping[str, ModelSettings], pools: Mapping[str, PoolSettings], *, base_dir: Path
) -> dict[str, str]:
    """Return the pools of which a part is reserved though their GPU is not there, and a remedy.

    A pool's own interpreter is asked, as its worker would be. One that has no torch serves nothing
    here, and says nothing of GPUs: its pool is passed over.
    """
    found: dict[str, str] = {}
    for name, pool in pools.items():
        kind, _, index = pool.device.partition(":")
        reserving = [m for m, s in models.items() if s.pool == name and s.qos.reserved_share > 0]
        if kind != "cuda" or not reserving:
            continue
        count = num_gpus(None if pool.python is None else str(base_dir / pool.python))
        if count is not None and int(index or 0) >= count:
            found[name] = (
                f"{pool.device!r} does not exist, and part of it is reserved "
                f"({', '.join(reserving)}); this machine has {count} GPU(s): use `cpu` or `auto`"
            )
    return found


def num_gpus(python: str | None) -> int | None:
    """Return how many GPUs torch sees under an interpreter (None: this one); None: it has none."""
    command = [python or sys.executable, "-c", _COUNT]
    try:
        done = subprocess.run(  # noqa: S603 - the interpreter that the pool's worker runs under
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return int(done.stdout) if done.returncode == 0 else None
