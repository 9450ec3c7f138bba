"""Runs in a process of its own: our encoder engine on a list of texts, without HTTP.

    python -m engine_measures.embed_ours --model DIRECTORY --dtype float32 --threads N
        --rounds 3 --vectors OUT.npy

Texts come as a JSON list on standard input. Each is a request of its own, as from so many clients.
Prints one line of JSON: the seconds of each round, from text to vectors.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from deepseek.core.requests import EncodeRequest, Task
from deepseek.core.wire import Encoded, ModelSpec, WorkerSpec
from deepseek.engine.base import Engine
from deepseek.engine.device import prepare_device
from deepseek.engine.loading import load_engine
from deepseek.serving.text_codec import TextCodec

_NAME = "encoder"
_NUM_WARM_UP = 64


def load(model: str, *, dtype: str, threads: int) -> Engine:
    """Load the model as a worker of one pool does."""
    spec = ModelSpec(name=_NAME, path=model, task=Task.EMBED, dtype=dtype)
    pool = WorkerSpec(
        pool="default", socket_path="", device="cpu", models=[spec], num_threads=threads
    )
    engine, _ = load_engine(spec, pool, device=prepare_device(pool))
    return engine


def encode(engine: Engine, codec: Any, texts: list[str]) -> Any:
    """Return one vector a text, in their order."""
    sequences = codec.encode_batch(texts)
    for number, tokens in enumerate(sequences):
        engine.add(EncodeRequest(id=number, model=_NAME, sequences=[tokens]))
    rows: dict[int, Any] = {}
    while engine.has_work:
        for output in engine.step():
            if not isinstance(output, Encoded):
                sys.exit(f"not an embedding: {output}")
            rows[output.id] = np.frombuffer(output.data, dtype=np.float32)
    return np.stack([rows[number] for number in range(len(texts))])


def main() -> None:
    """Load, warm up, measure, save the vectors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--vectors", required=True)
    arguments = parser.parse_args()
    engine = load(arguments.model, dtype=arguments.dtype, threads=arguments.threads)
    codec = TextCodec(Path(arguments.model))
    texts = json.load(sys.stdin)
    encode(engine, codec, texts[:_NUM_WARM_UP])
    seconds = []
    for _ in range(arguments.rounds):
        start_s = time.perf_counter()
        vectors = encode(engine, codec, texts)
        seconds.append(time.perf_counter() - start_s)
    np.save(arguments.vectors, vectors)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
