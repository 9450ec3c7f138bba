"""The decoder engine on one GPU: answers first, then speed, then where the time goes.

    python benchmarks/engine_gpu.py [--model DIR] [--only PART ...] [--out DIR]

Speed is that of the Llama-3-8B shape with random weights in bfloat16, written to a temporary
directory once. `--model` names a small real model whose greedy answers are compared with
transformers' own. Prints a table and writes `benchmarks/results/engine_gpu.json`.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from engine_gpu_measures.answers import compare_answers
from engine_gpu_measures.llama_8b import write_llama_8b
from engine_gpu_measures.session import Session, open_session
from engine_gpu_measures.where_time_goes import decode_breakdown
from frame import RESULTS, Row, bound, fact, finish

PUBLISHED_VLLM = {"one stream": 6.5, 64: 4455.0, 256: 6519.0, "1024/128 at 256": 3729.0}
"""vLLM 0.24 on an H100 80GB, this shape; measured elsewhere, for orientation only."""


_REST_S = 3.0
"""Before a prompt that finds the card rested: in a row of them its power limit decides."""


def main() -> int:
    """Measure the chosen parts, print the table, write the JSON."""
    arguments = _arguments()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for part, measure in PARTS.items():
            if arguments.only and part not in arguments.only:
                continue
            started = time.perf_counter()
            for row in measure(arguments, Path(scratch)):
                # At once: a run that is cut off has told what it measured.
                print(f"{row.measure}: {row.ours}", file=sys.stderr, flush=True)
                rows.append(row)
            print(f"{part}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return finish("engine_gpu", rows, results=arguments.out)


def answers(arguments: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    """Compare greedy answers of a small real model with transformers' own."""
    if arguments.model is None:
        return
    for dtype in ("float32", "bfloat16"):
        same, total, first_difference = compare_answers(arguments.model, dtype=dtype)
        yield bound(
            f"answers equal to transformers' greedy, {dtype} (of {total})",
            same,
            at_least=total if dtype == "float32" else None,
        )
        yield fact(f"first difference at token, {dtype}", first_difference)


def start(arguments: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    """Time a worker process from its start to its first token, the second time."""
    from engine_gpu_measures.worker_start import seconds_to_first_token

    directory = write_llama_8b(scratch)
    seconds = [asyncio.run(seconds_to_first_token(directory)) for _ in range(2)]
    yield fact("worker start to first token, first time (s)", seconds[0]["total"])
    yield bound("worker start to first token, warm caches (s)", seconds[1]["total"], at_most=20)
    for phase, value in seconds[1].items():
        if phase != "total":
            yield fact(f"of it: {phase} (s)", value)


def speed(arguments: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    """Measure latency and throughput in process, without a socket between."""
    with open_session(write_llama_8b(scratch)) as session:
        yield fact("KV cache (tokens)", session.engine.load().kv_tokens_capacity)
        session.generate(num_requests=4, input_tokens=512, output_tokens=8)  # warm up
        gaps = session.stream(input_tokens=512, output_tokens=256)
        yield bound("one stream (ms/token, p50)", 1e3 * statistics.median(gaps[8:]), at_most=6.5)
        yield from _prefill(session)
        for num, size, at_least in ((64, 512, 4450), (256, 512, 6500), (256, 1024, 3700)):
            session.generate(num_requests=num, input_tokens=size, output_tokens=4)
            rate = session.generate(num_requests=num, input_tokens=size, output_tokens=128)
            yield bound(f"{size} in / 128 out, {num} at once (tok/s)", rate, at_least=at_least)
        for num in (1, 64, 256):
            yield from decode_breakdown(session, num_sequences=num)


def _prefill(session: Session) -> Iterator[Row]:
    """Time one prompt on a card that has rested, and in a row of them, where power is the limit."""
    for size, at_most in ((512, None), (2048, None), (8192, 200)):
        rested = [_rested_first_token(session, size) for _ in range(5)]
        in_a_row = [session.first_token(input_tokens=size) for _ in range(5)]
        yield bound(f"prefill of {size} (ms)", _median_ms(rested[1:]), at_most=at_most)
        yield fact(f"prefill of {size}, one right after another (ms)", _median_ms(in_a_row[1:]))


def _rested_first_token(session: Session, size: int) -> float:
    time.sleep(_REST_S)
    return session.first_token(input_tokens=size)


def _median_ms(seconds: list[float]) -> float:
    return 1e3 * statistics.median(seconds)


PARTS: dict[str, Callable[[argparse.Namespace, Path], Iterator[Row]]] = {
    "answers": answers,
    "speed": speed,
    "start": start,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, help="a small real model's directory")
    parser.add_argument("--only", action="append", choices=PARTS, help="measure only this part")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
