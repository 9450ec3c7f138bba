"""A process that begins loads as a worker does, and cancels them at random moments.

    python cancelled_loads.py MODEL_DIRECTORY COUNT

Prints a JSON list: milliseconds from each cancellation until the loader was free. Nothing is
prepared: mapping a model takes about as long as a cancellation may.
"""

import json
import random
import sys
import time
from queue import SimpleQueue

from deepseek.core.requests import Task
from deepseek.core.wire import ModelInfo, ModelSpec, WorkerSpec
from deepseek.engine.base import Engine
from deepseek.engine.device import prepare_device
from deepseek.engine.load_pace import LoadCancelled, LoadPace
from deepseek.engine.model_loader import ModelLoader, ModelRead
from deepseek.engine.selection import load_model


def main() -> None:
    """Load once to the end, as a running worker has; then cancel."""
    path, count = sys.argv[1], int(sys.argv[2])
    model = ModelSpec(name="m", path=path, task=Task.GENERATE)
    spec = WorkerSpec(pool="default", socket_path="", device="cpu", models=[model])
    device = prepare_device(spec)
    reads: SimpleQueue[ModelRead] = SimpleQueue()

    def load(model: ModelSpec, pace: LoadPace) -> tuple[Engine, ModelInfo]:
        return load_model(model, spec, device=device, pace=pace)

    loader = ModelLoader(load, put=reads.put)
    lasting_s = [_load(loader, model, reads) for _ in range(3)]
    draws = random.Random(0)  # noqa: S311 - the same moments in every run
    latencies_ms: list[float] = []
    for _ in range(count):
        pace = LoadPace()
        loader.begin(model, pace)
        time.sleep(draws.uniform(0.0, min(lasting_s)))
        cancelled_s = time.perf_counter()
        pace.cancel()
        read = reads.get()
        latency_s = time.perf_counter() - cancelled_s
        if isinstance(read.outcome.exception(), LoadCancelled):
            latencies_ms.append(1000 * latency_s)
        else:
            loader.take_apart(read.outcome.result()[0])
    loader.close()
    print(json.dumps(latencies_ms))


def _load(loader: ModelLoader, model: ModelSpec, reads: "SimpleQueue[ModelRead]") -> float:
    """Return how long a load takes that nobody cancels."""
    started_s = time.perf_counter()
    loader.begin(model, LoadPace())
    engine, _ = reads.get().outcome.result()
    seconds = time.perf_counter() - started_s
    loader.take_apart(engine)
    return seconds


if __name__ == "__main__":
    main()
