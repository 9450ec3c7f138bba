"""How soon a load that nobody waits for gives way to one that somebody does."""

import math
import random
import time
from queue import SimpleQueue

from frame import Row, bound, fact
from serving_measures.platform import CHAT_MODEL, Run

from deepseek.core.requests import Task
from deepseek.core.wire import ModelInfo, ModelSpec, WorkerSpec
from deepseek.engine.base import Engine
from deepseek.engine.load_pace import LoadCancelled, LoadPace
from deepseek.engine.model_loader import ModelLoader, ModelRead
from deepseek.engine.selection import load_model
from deepseek.weights.acquisition import acquire
from deepseek.weights.cache import ModelCache
from deepseek.weights.catalogue import CATALOGUE
from deepseek.weights.progress import SilentProgress

_GOAL_MS = 20.0
_WITHIN_S = 0.3
"""Loads are cancelled at a random moment of their first so many seconds."""


def cancelling(run: Run) -> list[Row]:
    """Cancel loads of a real model at random moments, and time until the loader is free."""
    path = acquire(CATALOGUE[CHAT_MODEL], cache=ModelCache.default(), progress=SilentProgress())
    model = ModelSpec(name=CHAT_MODEL, path=str(path), task=Task.GENERATE)
    spec = WorkerSpec(pool="default", socket_path="", device="cpu", models=[model])
    reads: SimpleQueue[ModelRead] = SimpleQueue()

    def load(model: ModelSpec, pace: LoadPace) -> tuple[Engine, ModelInfo]:
        return load_model(model, spec, device="cpu", pace=pace)

    loader = ModelLoader(load, put=reads.put)
    draws = random.Random(0)  # noqa: S311 - the same moments in every run
    latencies_ms: list[float] = []
    for _ in range(run.count(200, 10)):
        pace = LoadPace()
        loader.begin(model, pace)
        time.sleep(draws.uniform(0.0, _WITHIN_S))
        cancelled_s = time.perf_counter()
        pace.cancel()
        read = reads.get()
        latency_s = time.perf_counter() - cancelled_s
        if isinstance(read.outcome.exception(), LoadCancelled):
            latencies_ms.append(1000 * latency_s)
        else:
            loader.take_apart(read.outcome.result()[0])
    loader.close()
    latencies_ms.sort()
    p99_ms = latencies_ms[math.ceil(0.99 * len(latencies_ms)) - 1]
    return [
        bound(f"{CHAT_MODEL}: cancelling a load, 99th percentile (ms)", p99_ms, at_most=_GOAL_MS),
        fact("- median (ms)", latencies_ms[len(latencies_ms) // 2]),
        fact("- loads that were cancelled before they had ended", len(latencies_ms)),
    ]
