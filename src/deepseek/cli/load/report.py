"""Sums up what a load run has seen."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from deepseek.cli.load.answer import RequestRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySummary:
    """Milliseconds; all zero where nothing was measured (`num` is 0)."""

    num: int = 0
    mean_ms: float = 0.0
    p50_ms: float = 0.0
    p90_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0

    @classmethod
    def of_seconds(cls, values: Sequence[float]) -> "LatencySummary":
        """Summarise durations; percentiles interpolate linearly."""
        if not values:
            return cls()
        ms = np.asarray(values) * 1000
        p50, p90, p99 = (round(float(p), 3) for p in np.percentile(ms, (50, 90, 99)))
        return cls(
            num=len(values),
            mean_ms=round(float(ms.mean()), 3),
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            max_ms=round(float(ms.max()), 3),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """The result of one run."""

    url: str | None
    """None: no server, but a worker's engine."""
    model: str
    task: str
    concurrency: int | None
    """None: open loop, requests sent at their arrival times."""
    num_requests: int
    num_ok: int
    errors: dict[str, int]
    """Failed requests by kind, the most frequent first."""
    duration_s: float
    """From the first request sent to the last answer complete."""
    input_tokens: int
    """Of the complete answers, where the server counts them."""
    output_tokens: int
    token_counting: str
    """`usage`: counted by the server; `chunks`: text chunks stand for tokens, for servers that
    send no usage; `mixed`: some of each; `ids`: a worker's own token ids."""
    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    ttft: LatencySummary
    """From sending a chat request to the first chunk with text."""
    inter_token: LatencySummary
    """Between two chunks with text of one answer."""
    e2e: LatencySummary
    """From sending a request to its complete answer."""
    send_lag: LatencySummary
    """Open loop: how late the generator itself sent requests. Above a few ms it was the limit."""
    client_cpu_s: float
    """Processor time of the generator's own process."""
    records: tuple[RequestRecord, ...] = field(default=(), repr=False)
    """Every request in the plan's order; not part of the JSON."""
    engine: str | None = None
    """Of a run without a server: the engine that was asked for."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON types, without the single records."""
        fields = asdict(self)
        del fields["records"]
        return fields


def summarise(
    records: Sequence[RequestRecord],
    *,
    url: str | None,
    model: str,
    task: str,
    concurrency: int | None,
    client_cpu_s: float,
    engine: str | None = None,
) -> LoadReport:
    """Return the report; latencies and tokens are those of complete answers only."""
    complete = [record for record in records if record.error is None]
    errors = Counter(record.error for record in records if record.error is not None)
    sent = [record for record in records if record.done_s > 0]
    duration_s = max(r.done_s for r in sent) - min(r.sent_s for r in sent) if sent else 0.0
    per_s = 1 / duration_s if duration_s > 0 else 0.0
    input_tokens = sum(record.input_tokens or 0 for record in complete)
    output_tokens = sum(_output_tokens(record) for record in complete)
    return LoadReport(
        url=url,
        engine=engine,
        model=model,
        task=task,
        concurrency=concurrency,
        num_requests=len(records),
        num_ok=len(complete),
        errors=dict(errors.most_common()),
        duration_s=round(duration_s, 6),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        token_counting="ids" if engine else _token_counting(complete),
        requests_per_s=round(len(complete) * per_s, 3),
        input_tokens_per_s=round(input_tokens * per_s, 3),
        output_tokens_per_s=round(output_tokens * per_s, 3),
        ttft=LatencySummary.of_seconds(
            [r.token_times_s[0] - r.sent_s for r in complete if r.token_times_s]
        ),
        inter_token=LatencySummary.of_seconds(
            [gap for r in complete for gap in np.diff(r.token_times_s).tolist()]
        ),
        e2e=LatencySummary.of_seconds([r.done_s - r.sent_s for r in complete]),
        send_lag=LatencySummary.of_seconds(
            [] if concurrency else [r.sent_s - r.due_s for r in sent]
        ),
        client_cpu_s=round(client_cpu_s, 3),
        records=tuple(records),
    )


def _output_tokens(record: RequestRecord) -> int:
    if record.output_tokens is not None:
        return record.output_tokens
    return len(record.token_times_s)


def _token_counting(complete: Sequence[RequestRecord]) -> str:
    counted = {record.output_tokens is not None for record in complete if record.token_times_s}
    if counted == {True, False}:
        return "mixed"
    return "chunks" if counted == {False} else "usage"
