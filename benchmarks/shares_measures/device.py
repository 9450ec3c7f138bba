"""Four models on one core, the critical one with nine tenths of it; and their clients."""

import asyncio
import os
import random
import time
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvloop
import yaml
from headline_measures.workload import Served, send
from serving_measures.platform import Run, serve

from deepseek.cli.load.plan import LoadPlan, LoadTask, PlannedRequest
from deepseek.cli.load.prompts import random_text
from shares_measures.steps import Steps, read_steps

CRITICAL = "chat"
OTHERS = ("assistant", "embed", "classify")
MODELS = (CRITICAL, *OTHERS)
PROMISED = 0.9
"""Part of the device time that the critical model shall have, whatever the others do."""
RESERVED = 0.92
"""What is reserved for that: steps of others come whole, and now and then one takes long."""
_SOURCES = {
    "chat": "smollm2-135m",
    "assistant": "smollm2-135m",
    "embed": "minilm-l6",
    "classify": "sentiment",
}
_TASKS = {
    "chat": LoadTask.CHAT,
    "assistant": LoadTask.CHAT,
    "embed": LoadTask.EMBED,
    "classify": LoadTask.CLASSIFY,
}
_GREEDY = {"temperature": 0, "ignore_eos": True}
_UNDER_WAY = 16
"""Requests of each backlogged model."""
_ANSWER_TOKENS = 32
_ASSISTANT_BATCH = 2
_MANY_PER_S = 400
"""More than any of the models answers."""


@dataclass(slots=True)
class Device:
    """A served worker; its steps can be read once it has ended."""

    url: str
    record: Path
    spans: dict[str, tuple[float, float]]

    def send(
        self, name: str, plans: dict[str, LoadPlan], *, stop_after_s: float | None = None
    ) -> dict[str, Served]:
        """Send plans and remember when that was."""
        start_s = time.monotonic()
        served, _ = _run(send(self.url, plans, stop_after_s=stop_after_s))
        self.spans[name] = (start_s, time.monotonic())
        return served

    def steps(self, name: str, *, margin_s: float = 0.0) -> Steps:
        """Return the steps of a time that was sent in, without its beginning and end."""
        start_s, end_s = self.spans[name]
        return read_steps(self.record).between(start_s + margin_s, end_s - margin_s)


@contextmanager
def serve_device(run: Run, *, name: str, step_policy: str = "fair-share") -> Iterator[Device]:
    """Serve the four models; gateway and clients have the other cores."""
    record = run.work / f"{name}.steps.jsonl"
    file = _write(run.work / f"{name}.yaml", record=record, step_policy=step_policy)
    with serve(run, file, name=name) as platform:
        device = Device(platform.url, record, {})
        device.send("warm-up", backlogs(MODELS, for_s=3.0), stop_after_s=3.0)
        yield device


def backlogs(models: Iterable[str], *, for_s: float) -> dict[str, LoadPlan]:
    """Return requests that keep models busy for so long."""
    count = int(for_s * _MANY_PER_S)
    return {
        model: _plan(model, [_request(model, n) for n in range(count)], concurrency=_UNDER_WAY)
        for model in models
    }


def arrivals(model: str, *, per_second: float, seconds: float) -> LoadPlan:
    """Return requests that arrive independently of one another, the same at every call."""
    draws = random.Random(model)  # noqa: S311 - reproducible arrivals
    requests: list[PlannedRequest] = []
    at_s = draws.expovariate(per_second)
    while at_s < seconds:
        requests.append(replace(_request(model, len(requests)), arrival_s=at_s))
        at_s += draws.expovariate(per_second)
    return _plan(model, requests)


def _plan(
    model: str, requests: list[PlannedRequest], *, concurrency: int | None = None
) -> LoadPlan:
    task = _TASKS[model]
    body = _GREEDY if task is LoadTask.CHAT else {}
    return LoadPlan(requests=requests, task=task, concurrency=concurrency, extra_body=body)


def _request(model: str, number: int) -> PlannedRequest:
    seed = f"{model} {number}"
    if _TASKS[model] is LoadTask.CHAT:
        return PlannedRequest(text=random_text(30, seed=seed), max_tokens=_ANSWER_TOKENS)
    return PlannedRequest(text=random_text(8 + number % 24, seed=seed))


def _write(path: Path, *, record: Path, step_policy: str) -> Path:
    models = {name: _model(name) for name in MODELS}
    if step_policy == "fair-share":  # round-robin is refused beside a reservation
        models[CRITICAL]["qos"] = {"priority": "critical", "reservedShare": RESERVED}
    pool = {
        "device": "cpu",
        "cpus": str(min(os.sched_getaffinity(0))),
        "num_threads": 1,
        "kv_cache_bytes": "256MiB",
        "step_policy": step_policy,
        "step_record": str(record),
    }
    content = {"models": models, "pools": {"default": pool}}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def _model(name: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"source": _SOURCES[name], "max_queue": 4096}
    if _SOURCES[name] == "smollm2-135m":
        settings["quantization"] = "int8"
    if name == "assistant":
        # All that decode do so in every step, which no bound can cut: this keeps its steps short.
        settings["qos"] = {"maxBatchSize": _ASSISTANT_BATCH}
    return settings


def _run(
    sending: Coroutine[Any, Any, tuple[dict[str, Served], float]],
) -> tuple[dict[str, Served], float]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(sending)
