"""Loads a server with the platform's own load generator, and reads what came back."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import uvloop

from deepseek.cli.load.answer import RequestRecord
from deepseek.cli.load.plan import LoadPlan, PlannedRequest
from deepseek.cli.load.prompts import random_text
from deepseek.cli.load.report import LoadReport
from deepseek.cli.load.runner import run_load
from serving_measures.platform import MeasurementFailed

PROMPT_WORDS = 17
"""With the instruction and the chat template about 54 tokens."""


def story_requests(count: int, *, max_tokens: int, seed: str) -> list[PlannedRequest]:
    """Return chat requests of about 54 prompt tokens that share no text but the instruction."""
    return [
        PlannedRequest(
            text="Write a long story with: " + random_text(PROMPT_WORDS, seed=f"{seed} {number}"),
            max_tokens=max_tokens,
        )
        for number in range(count)
    ]


def chat_records(
    url: str,
    requests: Sequence[PlannedRequest],
    *,
    model: str,
    concurrency: int,
    extra_body: Mapping[str, Any],
    timeout_s: float = 300.0,
) -> list[RequestRecord]:
    """Send streaming chats in a closed loop and return what was seen of each."""
    report = chat_report(
        url,
        requests,
        model=model,
        concurrency=concurrency,
        extra_body=extra_body,
        timeout_s=timeout_s,
    )
    return list(report.records)


def chat_report(
    url: str,
    requests: Sequence[PlannedRequest],
    *,
    model: str,
    concurrency: int,
    extra_body: Mapping[str, Any],
    timeout_s: float = 300.0,
) -> LoadReport:
    """Send streaming chats in a closed loop and return the report, the answers' text in it.

    It runs on uvloop, which halves what the generator takes from the server beside it.
    """
    plan = LoadPlan(requests=requests, concurrency=concurrency, extra_body=extra_body)
    load = run_load(plan, url=url, model=model, keep_text=True, timeout_s=timeout_s)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(load)


def output_tokens_per_s(records: Sequence[RequestRecord], *, expected_tokens: int) -> float:
    """Return the rate from the first request sent to the last answer complete.

    Both servers must have given what was asked for: answers of exactly `expected_tokens` tokens.
    Raises `MeasurementFailed`.
    """
    for record in records:
        is_whole = record.finish_reason == "length" and record.output_tokens == expected_tokens
        if not is_whole or record.error is not None:
            raise MeasurementFailed(
                f"an answer has {record.output_tokens} tokens instead of {expected_tokens}, finish "
                f"reason {record.finish_reason}, error {record.error}"
            )
    duration_s = max(r.done_s for r in records) - min(r.sent_s for r in records)
    return expected_tokens * len(records) / duration_s
