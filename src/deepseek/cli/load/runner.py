"""Sends a plan's requests and records what comes back."""

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec

from deepseek.cli.http_client import HttpClient, HttpFailure
from deepseek.cli.load.answer import AnswerReader, RequestRecord
from deepseek.cli.load.plan import LoadPlan, LoadTask
from deepseek.cli.load.report import LoadReport, summarise

OnDone = Callable[[RequestRecord], None]


async def run_load(
    plan: LoadPlan,
    *,
    url: str,
    model: str,
    timeout_s: float = 600.0,
    keep_text: bool = False,
    on_done: OnDone | None = None,
) -> LoadReport:
    """Send every request of the plan and return the report.

    A failed request is counted by kind and never raises; `on_done` is called after each request.
    Cancelling closes the connections of the requests under way.
    """
    # Encoded before the clock starts: the generator must not be the load it measures.
    bodies = [plan.body(request, model=model) for request in plan.requests]
    records = [RequestRecord(due_s=0.0) for _ in bodies]
    cpu_before_s = time.process_time()
    with HttpClient(url, timeout_s=timeout_s) as client:
        run = _Run(client, plan.task, bodies, records, keep_text=keep_text, on_done=on_done)
        if plan.concurrency is None:
            await run.open_loop([request.arrival_s for request in plan.requests])
        else:
            await run.closed_loop(plan.concurrency)
    return summarise(
        records,
        url=client.url,
        model=model,
        task=plan.task,
        concurrency=plan.concurrency,
        client_cpu_s=time.process_time() - cpu_before_s,
    )


class _Run:
    """One run's requests, sent in order."""

    def __init__(
        self,
        client: HttpClient,
        task: LoadTask,
        bodies: Sequence[bytes],
        records: Sequence[RequestRecord],
        *,
        keep_text: bool,
        on_done: OnDone | None,
    ) -> None:
        self._client = client
        self._task = task
        self._bodies = bodies
        self._records = records
        self._keep_text = keep_text
        self._on_done = on_done

    async def closed_loop(self, concurrency: int) -> None:
        """Keep so many requests under way until all are done."""
        indices = iter(range(len(self._bodies)))

        async def take_turns() -> None:
            for index in indices:
                await self._send(index, due_s=time.perf_counter())

        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(self._bodies))):
                group.create_task(take_turns())

    async def open_loop(self, arrivals_s: Sequence[float]) -> None:
        """Send each request at its time, however many are under way."""
        start_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for index in sorted(range(len(arrivals_s)), key=arrivals_s.__getitem__):
                due_s = start_s + arrivals_s[index]
                await asyncio.sleep(due_s - time.perf_counter())
                group.create_task(self._send(index, due_s=due_s))

    async def _send(self, index: int, *, due_s: float) -> None:
        record = self._records[index]
        reader = AnswerReader(record, keep_text=self._keep_text)
        streamed = self._task is LoadTask.CHAT
        record.due_s, record.sent_s = due_s, time.perf_counter()
        try:
            response = await self._client.request(
                "POST",
                self._task.path,
                body=self._bodies[index],
                on_event=reader.on_event if streamed else None,
            )
            record.done_s = time.perf_counter()
            reader.finish(response, streamed=streamed)
        except HttpFailure as failure:
            record.done_s = time.perf_counter()
            record.error = failure.kind
        except msgspec.DecodeError:
            record.done_s = time.perf_counter()
            record.error = "not the API's JSON"
        if self._on_done is not None:
            self._on_done(record)
