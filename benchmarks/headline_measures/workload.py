"""What clients send: to each model a part of a bursty trace."""

import asyncio
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
from headline_measures.systems import CRITICAL, ITL_S, TTFT_S

TRACE = SHARED_DATA / "traces" / "AzureLLMInferenceTrace_code.csv"
"""Azure's code completion service: short answers in bursts (coefficient of variation 13)."""
_SHRINK = 16
"""Prompts are divided by this: 2,048 tokens on average become 128."""
_FIRST_ROWS = {"chat": 500, "assistant": 1000, "embed": 1500, "classify": 5000}
"""Where each model's part of the trace begins: each has bursts of its own."""
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


def trace_rows(model: str, count: int) -> list[TraceRow]:
    """Return the model's own part of the trace, prompts shortened, the first row at zero."""
    if not TRACE.exists():
        raise MeasurementFailed(f"{TRACE} is not there: the public traces are needed")
    first = _FIRST_ROWS[model]
    rows = read_trace(TRACE, max_rows=first + count)[first:]
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


def paced(rows: Sequence[TraceRow], *, per_second: float, seconds: float) -> list[TraceRow]:
    """Return as many rows as come in so many seconds at another mean rate; bursts stay bursts."""
    count = max(2, round(per_second * seconds))
    if count > len(rows):
        raise MeasurementFailed(f"the trace has {len(rows)} rows of the {count} that are needed")
    factor = seconds / rows[count - 1].arrival_s
    return [replace(row, arrival_s=row.arrival_s * factor) for row in rows[:count]]


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


def bursty_plan(model: str, rows: Sequence[TraceRow]) -> LoadPlan:
    """Return a model's requests at the rows' times; bulk work for all but the critical one."""
    if model == CRITICAL:
        return trace_plan(rows)
    requests = [
        replace(_bulk(model, number), arrival_s=row.arrival_s) for number, row in enumerate(rows)
    ]
    return LoadPlan(
        requests=requests,
        task=_TASKS[model],
        extra_body=_GREEDY if _TASKS[model] is LoadTask.CHAT else {},
    )


def is_in_time(model: str, record: RequestRecord) -> bool:
    """Say whether an answer kept its model's deadline, counted from when it should be sent."""
    if record.error is not None:
        return False
    if _TASKS[model] is not LoadTask.CHAT:
        return record.done_s - record.due_s <= TTFT_S
    times = record.token_times_s
    if not times or times[0] - record.due_s > TTFT_S:
        return False
    return len(times) == 1 or (times[-1] - times[0]) / (len(times) - 1) <= ITL_S


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
