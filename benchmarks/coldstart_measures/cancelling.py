"""How soon a load that nobody waits for gives way to one that somebody does."""

import json
import math
import subprocess
import sys
from pathlib import Path

from frame import Row, bound, fact
from serving_measures.platform import CHAT_MODEL, Run, source_path

from deepseek.serving.worker_process import worker_environment
from deepseek.weights.acquisition import acquire
from deepseek.weights.cache import ModelCache
from deepseek.weights.catalogue import CATALOGUE
from deepseek.weights.progress import SilentProgress

_GOAL_MS = 20.0
_CHILD = Path(__file__).parent / "cancelled_loads.py"


def cancelling(run: Run) -> list[Row]:
    """Cancel loads of a real model at random moments, in a worker's environment."""
    path = acquire(CATALOGUE[CHAT_MODEL], cache=ModelCache.default(), progress=SilentProgress())
    done = subprocess.run(
        [sys.executable, str(_CHILD), str(path), str(run.count(200, 10))],
        env={**worker_environment(), **source_path()},
        stdout=subprocess.PIPE,
        check=True,
    )
    latencies_ms: list[float] = sorted(json.loads(done.stdout))
    p99_ms = latencies_ms[math.ceil(0.99 * len(latencies_ms)) - 1]
    return [
        bound(f"{CHAT_MODEL}: cancelling a load, 99th percentile (ms)", p99_ms, at_most=_GOAL_MS),
        fact("- median (ms)", latencies_ms[len(latencies_ms) // 2]),
        fact("- loads that were cancelled before they had ended", len(latencies_ms)),
    ]
