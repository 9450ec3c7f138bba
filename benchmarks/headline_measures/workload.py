"""What clients send: a bursty trace to the critical model, bulk work to the others."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from frame import SHARED_DATA
from serving_measures.platform import MeasurementFailed

from deepseek.cli.load.answer import RequestRecord
from deepseek.cli.load.plan import LoadPlan, LoadTask, PlannedRequest, trace_requests
from deepseek.cli.load.prompts import TokenScale, random_text
from deepseek.cli.load.runner import run_load
from deepseek.cli.load.traces import TraceRow, read_trace
from headline_measures.systems import CRITICAL

TRACE = SHARED_DATA / "traces" / "AzureLLMInferenceTrace_code.csv"
"""Azure's code completion service: short answers in bursts (coefficient of variation 13)."""
_SHRINK = 16
"""Prompts are divided by this: 2,048 tokens on average become 128."""
_SKIP = 500
"""Rows of the trace before the part that is sent."""
_BACKLOG = 24
"""Requests under way for each model that is to be kept busy."""
_TASKS = {
    "chat": LoadTask.CHAT,
    "assistant": LoadTask.CHAT,
    "embed": LoadTask.EMBED,
    "classify": LoadTask.CLASSIFY,
}
_GREEDY = {"temperature": 0, "ignore_eos": True}


@dataclass(slots=True)
class Served:
    """What one model's clients have seen."""

    records: list[RequestRecord] = field(default_factory=list)

    @property
    def complete(self) -> list[RequestRecord]:
        return [record for record in self.records if record.error is None]

    def per_second(self, seconds: float) -> float:
        """Return the requests answered per second."""
        return len(self.complete) / seconds


def trace_rows(count: int) -> list[TraceRow]:
    """Return a part of the trace with shortened prompts, the first row at zero."""
    if not TRACE.exists():
        raise MeasurementFailed(f"{TRACE} is not there: the public traces are needed")
    rows = read_trace(TRACE, max_rows=_SKIP + count)[_SKIP:]
    start_s = rows[0].arrival_s
    return [
        replace(
            row,
            arrival_s=row.arrival_s - start_s,
            input_tokens=max(8, row.input_tokens // _SHRINK),
            output_tokens=max(1, row.output_tokens),
        )
        for row in rows
    ]


def paced(rows: Sequence[TraceRow], *, per_second: float) -> list[TraceRow]:
    """Return the rows at another mean rate; bursts stay bursts."""
    factor = (len(rows) / per_second) / rows[-1].arrival_s
    return [replace(row, arrival_s=row.arrival_s * factor) for row in rows]


def trace_plan(rows: Sequence[TraceRow]) -> LoadPlan:
    """Return the critical model's requests at the rows' times."""
    requests = trace_requests(rows, scale=TokenScale(fixed_tokens=30.0))
    return LoadPlan(requests=requests, task=LoadTask.CHAT, extra_body=_GREEDY)


def backlog_plan(model: str, *, rows: Sequence[TraceRow], count: int) -> LoadPlan:
    """Return requests that keep a model busy: the trace's own shapes for the critical one."""
    if model == CRITICAL:
        shapes = [rows[number % len(rows)] for number in range(count)]
        requests = [
            replace(request, arrival_s=0.0)
            for request in trace_requests(shapes, scale=TokenScale(fixed_tokens=30.0))
        ]
    else:
        requests = [_bulk(model, number) for number in range(count)]
    return LoadPlan(
        requests=requests,
        task=_TASKS[model],
        concurrency=_BACKLOG,
        extra_body=_GREEDY if _TASKS[model] is LoadTask.CHAT else {},
    )


def poisson_plan(model: str, *, per_second: float, seconds: float) -> LoadPlan:
    """Return bulk requests that arrive independently of one another."""
    draws = random.Random(model)  # noqa: S311 - reproducible arrivals
    requests: list[PlannedRequest] = []
    at_s = draws.expovariate(per_second)
    while at_s < seconds:
        requests.append(replace(_bulk(model, len(requests)), arrival_s=at_s))
        at_s += draws.expovariate(per_second)
    return LoadPlan(
        requests=requests,
        task=_TASKS[model],
        extra_body=_GREEDY if _TASKS[model] is LoadTask.CHAT else {},
    )


async def send(
    url: str,
    plans: Mapping[str, LoadPlan],
    *,
    stop_after_s: float | None = None,
    names: Mapping[str, str] | None = None,
) -> tuple[dict[str, Served], float]:
    """Send all plans at once; return what was answered and in how many seconds.

    `stop_after_s`: end then, whatever is under way; what was answered by then counts. `names`: what
    the server calls the models.
    """
    served = {model: Served() for model in plans}
    started_s = time.perf_counter()

    async def load(model: str, plan: LoadPlan) -> None:
        await run_load(
            plan,
            url=url,
            model=(names or {}).get(model, model),
            on_done=served[model].records.append,
        )

    sending = [asyncio.create_task(load(model, plan)) for model, plan in plans.items()]
    done, pending = await asyncio.wait(sending, timeout=stop_after_s)
    seconds = time.perf_counter() - started_s
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()
    for found in served.values():  # a cancelled request is no answer
        found.records = [r for r in found.records if r.done_s <= started_s + seconds]
    return served, seconds


def _bulk(model: str, number: int) -> PlannedRequest:
    seed = f"{model} {number}"
    if _TASKS[model] is LoadTask.CHAT:
        return PlannedRequest(text=random_text(60, seed=seed), max_tokens=48)
    return PlannedRequest(text=random_text(8 + number % 48, seed=seed))
