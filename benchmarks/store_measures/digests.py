"""What naming chunks by content costs: BLAKE3 and hashlib's functions over the same chunk."""

import hashlib
import os
import statistics
import time
from collections.abc import Callable

from blake3 import blake3
from frame import Row, comparison, fact
from serving_measures.platform import Run

from deepseek.weights.store.cutting import CHUNK_BYTES

_ROUNDS = 5
_CHUNKS_A_ROUND = 16


def digests(run: Run) -> list[Row]:
    """Measure each on one core, in turns."""
    chunk = memoryview(os.urandom(CHUNK_BYTES))
    functions: dict[str, Callable[[memoryview], object]] = {
        "BLAKE3": lambda data: blake3(data).digest(),
        "SHA-256": lambda data: hashlib.sha256(data).digest(),
        "BLAKE2b": lambda data: hashlib.blake2b(data).digest(),
        "SHA-1": lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
    }
    rates: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(run.count(_ROUNDS, 1)):
        for name, function in functions.items():
            start_s = time.perf_counter()
            for _ in range(_CHUNKS_A_ROUND):
                function(chunk)
            elapsed_s = time.perf_counter() - start_s
            rates[name].append(_CHUNKS_A_ROUND * CHUNK_BYTES / elapsed_s / 1e9)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ours = medians.pop("BLAKE3")
    rows = [
        comparison(f"digest of 8 MiB chunks, one core: BLAKE3 and {name} (GB/s)", ours=ours, peer=r)
        for name, r in medians.items()
    ]
    return [*rows, fact("digest: what two cores do with BLAKE3 (GB/s)", _on_two_cores(chunk))]


def _on_two_cores(chunk: memoryview) -> float:
    start_s = time.perf_counter()
    for _ in range(_CHUNKS_A_ROUND):
        blake3(chunk, max_threads=2).digest()
    return _CHUNKS_A_ROUND * CHUNK_BYTES / (time.perf_counter() - start_s) / 1e9
