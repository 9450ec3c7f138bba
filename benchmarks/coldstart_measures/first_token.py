"""From a request for a model that is not loaded to its first token, beside transformers."""

import asyncio
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    rows = [
        fact(f"- transformers, {dtype}: `from_pretrained` and first token, median (s)", _median(s))
        for dtype, s in peers.items()
    ]
    for precision, settings in _PRECISIONS.items():
        rows += _rows(run, precision, settings, rounds, peer=(best, _median(peers[best])))
    return rows


def _rows(
    run: Run,
    precision: str,
    settings: Mapping[str, Any],
    rounds: int,
    *,
    peer: tuple[str, float],
) -> list[Row]:
    anew = _ours_s(run, settings, rounds, prepared_bytes=0)
    _ours_s(run, settings, 1)  # so that the weights are prepared when the next worker starts
    ours = _ours_s(run, settings, rounds)
    dtype, peer_s = peer
    name = f"{CHAT_MODEL}, {precision}"
    return [
        bound(
            f"{name}, not loaded: request to first token over HTTP, slowest of {rounds} (s)",
            max(ours.cold_s),
            at_most=_GOAL_S,
        ),
        comparison(
            f"{name}: median (s), beside transformers in {dtype}",
            ours=_median(ours.cold_s),
            peer=peer_s,
            at_least=_GOAL_RATIO,
            lower_is_better=True,
        ),
        fact("- its first load since the worker's start (s)", ours.first_s),
        fact("- while it is loaded, prompt cached, median (s)", _median(ours.warm_s)),
        fact("- with `prepared_bytes: 0`: not loaded, median (s)", _median(anew.cold_s)),
    ]


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Seconds from a request to its first token."""

    first_s: float
    """Of the first one since the worker's start."""
    cold_s: list[float]
    """Of later ones that found the model gone."""
    warm_s: list[float]
    """Of the same request right after each of these."""


def _ours_s(
    run: Run, settings: Mapping[str, Any], rounds: int, *, prepared_bytes: int | None = None
) -> _Asked:
    pool = {} if prepared_bytes is None else {"prepared_bytes": prepared_bytes}
    with serve(run, _deployment(run, settings, pool), name="coldstart") as platform:
        return asyncio.run(_ask(platform.url, rounds))


async def _ask(url: str, rounds: int) -> _Asked:
    cold_s: list[float] = []
    warm_s: list[float] = []
    with HttpClient(url, timeout_s=60) as client:
        for _ in range(rounds + 1):
            await until_residency(client, CHAT_MODEL, "disk")
            cold_s.append(await first_token_s(url))
            warm_s.append(await first_token_s(url))
        await until_residency(client, CHAT_MODEL, "disk")  # and prepared, if it is to be
    return _Asked(first_s=cold_s[0], cold_s=cold_s[1:], warm_s=warm_s[1:])


def _deployment(run: Run, settings: Mapping[str, Any], pool: Mapping[str, Any]) -> Path:
    path = run.work / "coldstart.yaml"
    model = {"source": CHAT_MODEL, "min_resident": 0, "keep_alive": "1s", **settings}
    content = {"models": {CHAT_MODEL: model}, "pools": {"default": dict(pool)}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
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
