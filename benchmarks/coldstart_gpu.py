"""A model that has left the GPU: from a request to its first token, and where the time goes.

    python benchmarks/coldstart_gpu.py [--out DIR] [--scratch DIR]

The Llama-3-8B shape with random weights in bfloat16 (16 GB). Its weights wait in pinned host
memory; the worker's process, its device context and the model's graphs are there. First the engine
alone, in this process; then a worker in which two such models take turns on the device beside a
third one that stays: what is timed there is a request's way through the processes, the one model's
leaving and the other's coming. Prints a table and writes `coldstart_gpu.json`. Beside it, for
orientation, what vLLM 0.24 needs for the same shape to start (20 s of imports, 76 s of start-up)
and to leave its sleep mode (0.1 to 6 s): published.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from engine_gpu_measures.llama_8b import write_llama_8b
from engine_gpu_measures.parked_in_worker import TakingTurns, take_turns
from engine_gpu_measures.session import Session, open_session
from frame import RESULTS, Row, bound, fact, finish

from deepseek.core.wire import TokenDelta
from deepseek.engine.engines.decoder import DecoderEngine

_ROUNDS = 7
_PROMPT_TOKENS = 64
_KV_BYTES = 16 * 1024**3
_HOST_BYTES = 32 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Wake:
    """Seconds of one return to the device."""

    park_s: float
    freed_bytes: int
    queued_s: float
    """Until memory was there and nearly all of the copy done."""
    first_token_s: float


def main() -> int:
    """Park and wake the model some times; print the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    parser.add_argument("--scratch", type=Path, help="where 16 GB of weights are written meanwhile")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        path = write_llama_8b(Path(scratch))
        torch.cuda.empty_cache()  # the worker has the device to itself
        turns = asyncio.run(take_turns(path, model_bytes=_weights_bytes(path)))
        started = time.perf_counter()
        with open_session(
            path, kv_cache_bytes=_KV_BYTES, host_weights_bytes=_HOST_BYTES
        ) as session:
            load_s = time.perf_counter() - started
            rows = [*_measure(session, load_s=load_s), *_in_worker(turns)]
    return finish("coldstart_gpu", rows, results=arguments.out)


def _measure(session: Session, *, load_s: float) -> Iterator[Row]:
    engine = session.engine
    if not isinstance(engine, DecoderEngine):
        raise TypeError("the model did not load as a decoder")
    session.first_token(input_tokens=_PROMPT_TOKENS)
    warm = [session.first_token(input_tokens=_PROMPT_TOKENS) for _ in range(_ROUNDS)]
    decode_before = statistics.median(session.stream(input_tokens=64, output_tokens=32))
    served = [_wake(session, engine) for _ in range(_ROUNDS)][1:]
    copy_s = statistics.median(_copy_s(engine) for _ in range(_ROUNDS))
    decode_after = statistics.median(session.stream(input_tokens=64, output_tokens=32))
    num_bytes = sum(p.freed_bytes for p in served) / len(served) - _KV_BYTES
    first = sorted(w.first_token_s for w in served)
    yield fact("load, profile of addresses, pinning, graphs: once (s)", load_s)
    yield fact("weights (GB)", num_bytes / 1e9)
    yield bound("request to first token, worst of the rounds (s)", first[-1], at_most=0.8)
    yield fact("request to first token, median (s)", statistics.median(first))
    yield fact("of it: until the last pieces are queued (s)", _median(served, "queued_s"))
    yield fact("copy of the weights (s)", copy_s)
    yield bound("copy of the weights (GB/s)", num_bytes / copy_s / 1e9, at_least=45)
    yield fact("first token of a model that is there (s)", statistics.median(warm))
    yield fact("leaving the device (s)", _median(served, "park_s"))
    yield fact("decode step before and after (ms)", f"{1e3 * decode_before:.3f}, "
               f"{1e3 * decode_after:.3f}")  # fmt: skip


def _in_worker(turns: TakingTurns) -> Iterator[Row]:
    yield fact("in a worker: load from disk to the first token, once (s)", turns.load_s)
    for where, seconds in (
        ("parked, another model on the device", turns.first_token_s),
        ("the same while a third one streams", turns.beside_stream_s),
    ):
        name = f"in a worker: request to first token, {where}"
        yield bound(f"{name}, worst (s)", max(seconds), at_most=0.8)
        yield fact(f"{name}, median (s)", statistics.median(seconds))
    yield fact("a stream's time between tokens, nothing moves (ms)", 1e3 * turns.usual_gap_s)
    yield fact("its longest while a model is woken (ms)", 1e3 * turns.longest_gap_s)


def _weights_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def _copy_s(engine: DecoderEngine) -> float:
    """Return the time of the copy alone: to a model that is there already, memory and all."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    engine.wake()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def _wake(session: Session, engine: DecoderEngine) -> Wake:
    before = torch.cuda.mem_get_info()[0]
    started = time.perf_counter()
    engine.park()
    park_s = time.perf_counter() - started
    freed = torch.cuda.mem_get_info()[0] - before
    request = session.request(input_tokens=_PROMPT_TOKENS, output_tokens=1)
    started = time.perf_counter()
    engine.wake()
    queued_s = time.perf_counter() - started
    engine.add(request)
    while not any(isinstance(output, TokenDelta) for output in engine.step()):
        pass
    first_token_s = time.perf_counter() - started
    session.drain()
    return Wake(
        park_s=park_s,
        freed_bytes=freed,
        queued_s=queued_s,
        first_token_s=first_token_s,
    )


def _median(wakes: list[Wake], field: str) -> float:
    return statistics.median(getattr(wake, field) for wake in wakes)


if __name__ == "__main__":
    sys.exit(main())
