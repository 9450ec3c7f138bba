"""What to send and when: a closed loop of some concurrency, or arrivals at given times."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from deepseek.cli.load.prompts import TokenScale, random_text, text_of_blocks
from deepseek.cli.load.traces import BLOCK_TOKENS, TraceRow


class LoadTask(StrEnum):
    """Which route is loaded."""

    CHAT = "chat"
    EMBED = "embed"
    CLASSIFY = "classify"

    @property
    def path(self) -> str:
        return {
            LoadTask.CHAT: "/v1/chat/completions",
            LoadTask.EMBED: "/v1/embeddings",
            LoadTask.CLASSIFY: "/v1/classify",
        }[self]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRequest:
    """One request to send."""

    text: str
    max_tokens: int | None = None
    """Longest answer of a chat; None leaves it to the server."""
    arrival_s: float = 0.0
    """When to send it, in seconds after the start; a closed loop ignores it."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """More fields of this body, over those of the plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """Requests of one task and the way they arrive."""

    requests: Sequence[PlannedRequest]
    task: LoadTask = LoadTask.CHAT
    concurrency: int | None = None
    """Requests under way at once, each followed by the next; None sends at `arrival_s`, whatever
    is still under way."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """More fields of every body, such as `temperature` or `ignore_eos`."""

    def body(self, request: PlannedRequest, *, model: str) -> bytes:
        """Return the JSON to send."""
        fields: dict[str, Any] = {"model": model}
        if self.task is LoadTask.CHAT:
            fields["messages"] = [{"role": "user", "content": request.text}]
            fields["stream"] = True
            fields["stream_options"] = {"include_usage": True}
            if request.max_tokens is not None:
                fields["max_tokens"] = request.max_tokens
        else:
            fields["input"] = request.text
        return msgspec.json.encode({**fields, **self.extra_body, **request.extra_body})


def synthetic_requests(
    *, count: int, input_tokens: int, output_tokens: int | None, scale: TokenScale
) -> list[PlannedRequest]:
    """Return requests of one size; no two share a prefix beyond the chat template's own."""
    words = scale.words_for(input_tokens)
    return [
        PlannedRequest(text=random_text(words, seed=number), max_tokens=output_tokens)
        for number in range(count)
    ]


def prompt_requests(
    prompts: Sequence[str], *, count: int, output_tokens: int | None
) -> list[PlannedRequest]:
    """Return requests that take the prompts in turn."""
    return [
        PlannedRequest(text=prompts[number % len(prompts)], max_tokens=output_tokens)
        for number in range(count)
    ]


def trace_requests(
    rows: Sequence[TraceRow], *, scale: TokenScale, block_tokens: float = BLOCK_TOKENS
) -> list[PlannedRequest]:
    """Return one request per row of a trace, with the row's lengths and shared prefixes."""
    words_per_block = max(1, round(block_tokens / scale.tokens_per_word))
    return [
        PlannedRequest(
            text=text_of_blocks(
                row.prefix_blocks or (-1 - number,),
                num_words=scale.words_for(row.input_tokens),
                words_per_block=words_per_block,
            ),
            max_tokens=row.output_tokens,
            arrival_s=row.arrival_s,
        )
        for number, row in enumerate(rows)
    ]
