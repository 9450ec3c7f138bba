"""Ten models, memory for four: hits beside LRU, and what preloading costs a model that is there.

The models are copies of a language model and of an embedder under different names, in a chunk
store, where they share what they have in common. Requests are a public trace's, dealt out to them
with Zipf popularity; an embedder that stays is asked all the while.
"""

import asyncio
import math
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from frame import Row, bound, comparison, fact
from preloading_measures.workloads import NUM_FIT, NUM_MODELS, Workload
from serving_measures.platform import (
    CHAT_MODEL,
    EMBED_MODEL,
    MeasurementFailed,
    Run,
    gauge,
    serve,
)

from coldstart_measures.residency import until_residency
from deepseek.cli.http_client import HttpClient
from deepseek.scheduling.preloading.simulation import ModelArrival
from deepseek.weights.acquisition import acquire
from deepseek.weights.cache import ModelCache
from deepseek.weights.catalogue import CATALOGUE
from deepseek.weights.progress import SilentProgress

_TRACES = ("azure code", "azure conversation")
_PRELOADED_PER_S = "400MiB"
_PREPARED_BYTES = {CHAT_MODEL: 345 * 10**6, EMBED_MODEL: 92 * 10**6}
_GAP_S = 0.7
_WARM = "warm"
_WARM_PER_S = 20.0
_P99_RATIO = 1.05
_HIT_GOAL = 80.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """How a pool treats its models."""

    preloading: str
    preload_bytes_per_s: str | int

    def settings(self, budget_bytes: int) -> dict[str, Any]:
        return {
            "preloading": self.preloading,
            "preload_bytes_per_s": self.preload_bytes_per_s,
            "weights_bytes": budget_bytes,
        }


_LRU = _Way(preloading="lru", preload_bytes_per_s=0)
_ON_DEMAND = _Way(preloading="foreseen", preload_bytes_per_s=0)
_OURS = _Way(preloading="foreseen", preload_bytes_per_s=_PRELOADED_PER_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What came of one run."""

    hit_rate: float
    """Percent of the requests that found their model ready."""
    mean_s: float
    """From a request to its answer, models that come and go."""
    warm_p99_s: float
    """The same of the model that stays, 99th percentile."""


def many_models(run: Run) -> list[Row]:
    """Replay each trace three times: LRU on demand, ours on demand, ours with preloading."""
    sources = _in_chunks(run)
    _prepare(run, sources)
    rows: list[Row] = []
    for trace in _TRACES:
        workload = Workload(
            trace=trace, deal="streams", num_requests=run.count(260, 24), gap_s=_GAP_S
        )
        arrivals = workload.arrivals()
        seen = {way: _replay(run, sources, arrivals, way) for way in (_LRU, _ON_DEMAND, _OURS)}
        rows += _rows(trace, seen)
    return rows


def _rows(trace: str, seen: Mapping[_Way, _Seen]) -> list[Row]:
    ours, lru, on_demand = seen[_OURS], seen[_LRU], seen[_ON_DEMAND]
    return [
        comparison(
            f"{trace}: requests that find their model ready (%), beside LRU on demand",
            ours=ours.hit_rate,
            peer=lru.hit_rate,
            at_least=1.0,
        ),
        bound(f"{trace}: the same, by itself (%)", ours.hit_rate, at_least=_HIT_GOAL),
        fact("- without preloading (%)", on_demand.hit_rate),
        comparison(
            f"{trace}: mean time to an answer of models that come and go (s), beside LRU",
            ours=ours.mean_s,
            peer=lru.mean_s,
            lower_is_better=True,
        ),
        comparison(
            f"{trace}: the model that stays, 99th percentile (s), beside no preloading",
            ours=ours.warm_p99_s,
            peer=on_demand.warm_p99_s,
            at_least=1 / _P99_RATIO,
            lower_is_better=True,
        ),
    ]


# the models


def _in_chunks(run: Run) -> dict[str, str]:
    """Import ten copies into a chunk store of the run's own; return their names and sources."""
    own, progress = ModelCache(run.work / "home"), SilentProgress()
    sources: dict[str, str] = {}
    for rank in range(NUM_MODELS):
        source = _source(rank)
        path = acquire(CATALOGUE[source], cache=ModelCache.default(), progress=progress)
        name = f"m{rank}"
        sources[name] = str(own.add_chunks(name, path, progress=progress))
    return sources


def _prepare(run: Run, sources: Mapping[str, str]) -> None:
    """Load each model once, so that no way is the one that lays out weights for the others."""
    models = {
        name: {"source": source, "min_resident": 0, "keep_alive": "1s"}
        for name, source in sources.items()
    }
    path = run.work / "prepare.yaml"
    path.write_text(yaml.safe_dump({"models": models}, sort_keys=False), encoding="utf-8")
    with serve(run, path, name="prepare") as platform:
        asyncio.run(_load_each(platform.url, sources))


async def _load_each(url: str, models: Iterable[str]) -> None:
    with HttpClient(url, timeout_s=60) as client:
        for model in models:
            await _ask(client, model, _body(model), [])
            await until_residency(client, model, "disk")  # which it is not before it is prepared


def _source(rank: int) -> str:
    """Return what a model is a copy of: both kinds at all ranks of popularity."""
    return CHAT_MODEL if rank % 2 == 0 else EMBED_MODEL


def _deployment(run: Run, sources: Mapping[str, str], way: _Way) -> Path:
    total = sum(_PREPARED_BYTES[_source(rank)] for rank in range(NUM_MODELS))
    warm_bytes = _PREPARED_BYTES[EMBED_MODEL]
    budget_bytes = warm_bytes + total * NUM_FIT // NUM_MODELS
    models: dict[str, Any] = {
        name: {"source": source, "min_resident": 0} for name, source in sources.items()
    }
    models[_WARM] = {"source": EMBED_MODEL}
    content = {"models": models, "pools": {"default": way.settings(budget_bytes)}}
    path = run.work / "many.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


# the requests


def _replay(
    run: Run, sources: Mapping[str, str], arrivals: Sequence[ModelArrival], way: _Way
) -> _Seen:
    with serve(run, _deployment(run, sources, way), name="many") as platform:
        return asyncio.run(_send(platform.url, arrivals))


async def _send(url: str, arrivals: Sequence[ModelArrival]) -> _Seen:
    with HttpClient(url, timeout_s=60) as client:
        started_s = time.perf_counter()
        going: list[float] = []
        warm: list[float] = []
        steady = asyncio.create_task(_ask_steadily(client, warm))
        async with asyncio.TaskGroup() as group:
            for arrival in arrivals:
                await asyncio.sleep(max(0.0, started_s + arrival.at_s - time.perf_counter()))
                group.create_task(_ask(client, arrival.model, _body(arrival.model), going))
        steady.cancel()
        await asyncio.gather(steady, return_exceptions=True)
        await asyncio.sleep(1.0)  # for the last report
        warm_hits = await _of_model(client, "deepseek_model_residency_hits_total", _WARM)
        hits = await gauge(client, "deepseek_model_residency_hits_total") - warm_hits
        misses = await gauge(client, "deepseek_model_residency_misses_total")
    if hits + misses != len(arrivals):
        raise MeasurementFailed(f"{len(arrivals)} requests, {hits:g} hits, {misses:g} misses")
    warm.sort()
    return _Seen(
        hit_rate=100 * hits / (hits + misses),
        mean_s=sum(going) / len(going),
        warm_p99_s=warm[math.ceil(0.99 * len(warm)) - 1],
    )


async def _ask_steadily(client: HttpClient, seconds: list[float]) -> None:
    """Ask the model that stays until cancelled."""
    draws = random.Random(2)  # noqa: S311 - the same moments in every run
    async with asyncio.TaskGroup() as group:
        while True:
            await asyncio.sleep(draws.expovariate(_WARM_PER_S))
            group.create_task(_ask(client, _WARM, _embedding(_WARM), seconds))


async def _ask(
    client: HttpClient, model: str, request: tuple[str, dict[str, Any]], seconds: list[float]
) -> None:
    path, body = request
    started_s = time.perf_counter()
    response = await client.request("POST", path, body=body)
    if response.status != 200:
        raise MeasurementFailed(f"{model} answered {response.status}: {response.body!r}")
    seconds.append(time.perf_counter() - started_s)


def _body(model: str) -> tuple[str, dict[str, Any]]:
    if _source(int(model.removeprefix("m"))) == EMBED_MODEL:
        return _embedding(model)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 4,
        "temperature": 0,
    }
    return "/v1/chat/completions", body


def _embedding(model: str) -> tuple[str, dict[str, Any]]:
    return "/v1/embeddings", {"model": model, "input": "What is loaded when nobody asks?"}


async def _of_model(client: HttpClient, name: str, model: str) -> float:
    response = await client.request("GET", "/metrics")
    wanted = f'model="{model}"'
    return sum(
        float(line.rpartition(" ")[2])
        for line in response.body.decode().splitlines()
        if line.startswith(f"{name}{{") and wanted in line
    )
