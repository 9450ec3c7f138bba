"""From a request for a model that is not loaded to its first token, beside transformers."""

import asyncio
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from frame import Row, bound, comparison, fact
from serving_measures.platform import (
    CHAT_MODEL,
    MeasurementFailed,
    Run,
    first_token_s,
    serve,
)

from coldstart_measures.residency import until_residency
from deepseek.cli.http_client import HttpClient
from deepseek.weights.acquisition import acquire
from deepseek.weights.cache import ModelCache
from deepseek.weights.catalogue import CATALOGUE
from deepseek.weights.progress import SilentProgress

_GOAL_S, _GOAL_RATIO = 0.8, 4.0
_PRECISIONS: Mapping[str, Mapping[str, Any]] = {
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
}
_PEER = Path(__file__).parent / "peers" / "first_token.py"


def first_token(run: Run) -> list[Row]:
    """Serve the model with `min_resident: 0` and ask for it whenever it has left again."""
    rounds = run.count(9, 3)
    path = acquire(CATALOGUE[CHAT_MODEL], cache=ModelCache.default(), progress=SilentProgress())
    peers = {dtype: _transformers_s(path, dtype, rounds) for dtype in ("bfloat16", "float32")}
    best = min(peers, key=lambda dtype: statistics.median(peers[dtype]))
    peer_s = statistics.median(peers[best])
    rows = [
        fact(f"- transformers, {dtype}: `from_pretrained` and first token, median (s)", _median(s))
        for dtype, s in peers.items()
    ]
    for precision, settings in _PRECISIONS.items():
        first_s, seconds, warm_s = _ours_s(run, settings, rounds)
        name = f"{CHAT_MODEL}, {precision}"
        rows += [
            bound(
                f"{name}, not loaded: request to first token over HTTP, slowest of {rounds} (s)",
                max(seconds),
                at_most=_GOAL_S,
            ),
            comparison(
                f"{name}: median (s), beside transformers in {best}",
                ours=statistics.median(seconds),
                peer=peer_s,
                at_least=_GOAL_RATIO,
                lower_is_better=True,
            ),
            fact("- its first load since the worker's start (s)", first_s),
            fact("- while it is loaded, median (s)", _median(warm_s)),
        ]
    return rows


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _ours_s(
    run: Run, settings: Mapping[str, Any], rounds: int
) -> tuple[float, list[float], list[float]]:
    """Return the first load's seconds, those of the later ones, and those without a load."""
    with serve(run, _deployment(run, settings), name="coldstart") as platform:
        return asyncio.run(_ask(platform.url, rounds))


async def _ask(url: str, rounds: int) -> tuple[float, list[float], list[float]]:
    cold_s: list[float] = []
    warm_s: list[float] = []
    with HttpClient(url, timeout_s=60) as client:
        for _ in range(rounds + 1):
            await until_residency(client, CHAT_MODEL, "disk")
            cold_s.append(await first_token_s(url))
            warm_s.append(await first_token_s(url))
    return cold_s[0], cold_s[1:], warm_s[1:]


def _deployment(run: Run, settings: Mapping[str, Any]) -> Path:
    path = run.work / "coldstart.yaml"
    model = {"source": CHAT_MODEL, "min_resident": 0, "keep_alive": "1s", **settings}
    path.write_text(yaml.safe_dump({"models": {CHAT_MODEL: model}}), encoding="utf-8")
    return path


# transformers


def _transformers_s(path: Path, dtype: str, rounds: int) -> list[float]:
    """Return the seconds of each round but the first, which warms the process and the files."""
    with subprocess.Popen(
        [sys.executable, str(_PEER), str(path), dtype],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise MeasurementFailed("transformers' process has no pipes")
        process.stdout.readline()
        seconds: list[float] = []
        for _ in range(rounds + 1):
            process.stdin.write("again\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            if not answer:
                raise MeasurementFailed("transformers ended before it answered")
            seconds.append(json.loads(answer)["seconds"])
        process.stdin.close()
    return seconds[1:]
