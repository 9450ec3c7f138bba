"""Time until weights are in memory, from a cold and from a warm page cache, beside other loaders.

Each loader has a process of its own, which has loaded once before anything counts. They take turns,
each round in another order: a virtual disk may be faster for who comes first.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from frame import Row, comparison, fact, peer_environment
from serving_measures.platform import MeasurementFailed, Run, source_path

from deepseek.weights.store.chunk_store import ChunkStore
from store_measures.peers.page_cache import drop
from store_measures.weights import into_store, real_model, synthetic_model

REQUIREMENTS = (
    "safetensors==0.8.0",
    "runai-model-streamer==0.17.0",
    "fastsafetensors==0.5.0",
    "numpy",
)
_OURS = {
    "ours": "every digest checked",
    "ours-again": "digests checked once before",
}
"""The second is what a worker meets that has loaded the model before, or preloaded it. None of the
peers checks anything: from a warm page cache the first can only lose, so it has no target there."""
DISK = "disk"
PEERS = ("safe_open", "load_file", "load_file-pread", "runai", "fastsafetensors")
_ROUNDS = 5
_SCRIPT = Path(__file__).parent / "peers" / "load_weights.py"
_COLD_AT_MOST, _WARM_AT_LEAST = 0.01, 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weights:
    path: str
    files: Sequence[str]


def load_real(run: Run) -> list[Row]:
    """Load SmolLM2-135M (269 MB)."""
    return _compared(run, real_model(), "SmolLM2-135M")


def load_synthetic(run: Run) -> list[Row]:
    """Load random bfloat16 weights (2 GB)."""
    return _compared(run, synthetic_model(run), "2 GB of bfloat16")


def _compared(run: Run, weights: Path, title: str) -> list[Row]:
    work = run.work / f"load {weights.parent.name}"
    store = ChunkStore(work / "chunks")
    into_store(weights, store, work / "m")
    packs = [str(file) for file in (store.root / "packs").iterdir()]
    ours = _Weights(
        path=str(work / "m"),
        files=[*packs, *map(str, (store.root / "index.sqlite", work / "m" / "model.chunks.json"))],
    )
    theirs = _Weights(path=str(weights), files=[str(weights)])
    python = str(peer_environment("store", REQUIREMENTS))
    num_bytes = weights.stat().st_size
    rows = [fact(f"{title}: size (MB)", num_bytes / 1e6)]
    with ExitStack() as stack:
        loaders = {
            **{name: stack.enter_context(_Process(sys.executable, name, ours)) for name in _OURS},
            **{name: stack.enter_context(_Process(python, name, theirs)) for name in PEERS},
        }
        disk = {DISK: stack.enter_context(_Process(sys.executable, DISK, ours))}
        for is_cold in (True, False):
            # Whoever read a file last left it in the page cache in pieces of its own size,
            # small ones mapped ten times as slowly as huge pages. It is filled anew, for all alike.
            drop([*ours.files, *theirs.files])
            taking_part = loaders | disk if is_cold else loaders
            medians = _medians(taking_part, is_cold=is_cold, rounds=run.count(_ROUNDS, 1))
            rows += _rows(title, medians, num_bytes, is_cold=is_cold)
    return rows


def _rows(title: str, medians: Mapping[str, float], num_bytes: int, *, is_cold: bool) -> list[Row]:
    title = f"{title}, {'cold' if is_cold else 'warm'}"
    best = min(PEERS, key=lambda name: medians[name])
    rows = [fact(f"{title}: {name} (s)", medians[name]) for name in PEERS]
    if DISK in medians:
        rows.append(fact(f"{title}: the disk alone, nothing kept (s)", medians[DISK]))
    for name, words in _OURS.items():
        rows.append(
            comparison(
                f"{title}: until all is in memory, {words}, and {best} (s)",
                ours=medians[name],
                peer=medians[best],
                at_least=None if name == "ours" and not is_cold else 1.0,
                lower_is_better=True,
            )
        )
    rows.append(fact(f"{title}: ours, digests checked (GB/s)", num_bytes / medians["ours"] / 1e9))
    return rows


def _medians(loaders: "Mapping[str, _Process]", *, is_cold: bool, rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    checks = {name: process.load(is_cold=is_cold)["check"] for name, process in loaders.items()}
    if len({check for name, check in checks.items() if name != DISK}) != 1:
        raise MeasurementFailed(f"the loaders did not read the same: {checks}")
    names = list(loaders)
    for turn in range(rounds):
        start = turn * len(names) // rounds
        for name in names[start:] + names[:start]:
            seconds[name].append(loaders[name].load(is_cold=is_cold)["seconds"])
    return {name: statistics.median(values) for name, values in seconds.items()}


class _Process:
    """One loader at work; leaving the `with` block ends it."""

    def __init__(self, python: str, loader: str, weights: _Weights) -> None:
        self._loader = loader
        self._weights = weights
        self._process = subprocess.Popen(
            [python, str(_SCRIPT), loader],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **source_path()},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def load(self, *, is_cold: bool) -> dict[str, Any]:
        """Return the answer; raises `MeasurementFailed` where the page cache was not as wanted."""
        order = {"path": self._weights.path, "files": self._weights.files, "is_cold": is_cold}
        line = self._answer_to(json.dumps(order))
        answer: dict[str, Any] = json.loads(line)
        resident = answer["resident"]
        if resident > _COLD_AT_MOST if is_cold else resident < _WARM_AT_LEAST:
            raise MeasurementFailed(f"{self._loader}: {resident:.0%} of the files were in memory")
        return answer

    def _answer_to(self, line: str) -> str:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise MeasurementFailed(f"the loader {self._loader!r} has no pipes")
        stdin.write(line + "\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise MeasurementFailed(f"the loader {self._loader!r} ended")
        return answer
