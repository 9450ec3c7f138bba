"""Running one generation for one request: as a stream of events, or gathered into one answer."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from deepseek.core.errors import EngineFault
from deepseek.gateway.exchange import Exchange, Headers
from deepseek.gateway.precision import precision_headers
from deepseek.gateway.protocol_base import GenerationUsage, PromptTokensDetails
from deepseek.scheduling.precision.policy import PrecisionChoice
from deepseek.serving.base import (
    GenerateDeployment,
    GenerateOptions,
    PositionLogprobs,
    TextDelta,
    Usage,
)
from deepseek.telemetry.metrics import ModelMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What to ask a deployment."""

    deployment: GenerateDeployment
    prompts: Sequence[list[int]]
    options: GenerateOptions
    precision: PrecisionChoice | None = None
    """What it is computed in, and why; None where the model has one precision."""

    @property
    def headers(self) -> Headers:
        """What the answer's headers tell besides."""
        return precision_headers(self.precision)

    @property
    def num_answers(self) -> int:
        return len(self.prompts) * self.options.n

    def start(self) -> "aclosing[AsyncGenerator[TextDelta, None]]":
        """Return the deltas; leaving the context frees the slots of what still runs."""
        return aclosing(self.deployment.generate(self.prompts, self.options))


@dataclass(slots=True, kw_only=True)
class Answer:
    """One gathered answer."""

    text: str = ""
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    finish_reason: str = "stop"


class EventShape(Protocol):
    """Turns deltas into server-sent events of one route's shape."""

    def opening(self) -> bytes:
        """Return the events before the first text."""
        ...

    def events(self, delta: TextDelta) -> bytes:
        """Return the events of one delta."""
        ...

    def closing(self, usage: Usage) -> bytes:
        """Return the events after the last text."""
        ...


class Meter:
    """Counts one generation's tokens and times its deltas."""

    def __init__(self, generation: Generation, metrics: ModelMetrics, *, started_at: float) -> None:
        """`started_at` is the request's begin on `time.perf_counter`."""
        self.usage = Usage(prompt_tokens=sum(map(len, generation.prompts)))
        self._n = generation.options.n
        self._metrics = metrics
        self._choice = generation.precision
        self._started_at = started_at
        self._last_at: dict[int, float] = {}

    def saw(self, delta: TextDelta) -> None:
        """Account for a delta."""
        now = time.perf_counter()
        num_tokens = len(delta.token_ids)
        last_at = self._last_at.get(delta.index)
        if not self._last_at:
            self._metrics.time_to_first_token.observe(now - self._started_at)
        elif last_at is not None and num_tokens:
            self._metrics.inter_token_latency.observe((now - last_at) / num_tokens)
        self._last_at[delta.index] = now
        self.usage.completion_tokens += num_tokens
        if delta.num_cached_tokens and delta.index % self._n == 0:  # answers share their prompt
            self.usage.cached_tokens += delta.num_cached_tokens

    def close(self) -> None:
        """Add the totals to the metrics; to be called once, however the generation ended."""
        if not self._last_at:
            return
        self._metrics.prompt_tokens.inc(self.usage.prompt_tokens)
        self._metrics.completion_tokens.inc(self.usage.completion_tokens)
        self._metrics.cached_tokens.inc(self.usage.cached_tokens)
        choice = self._choice
        if choice is not None:
            self._metrics.tokens_in(choice.precision).inc(self.usage.completion_tokens)
            self._metrics.precision_choices(choice.precision, choice.reason).inc()


async def stream(
    exchange: Exchange, generation: Generation, shape: EventShape, meter: Meter
) -> None:
    """Send the answers as events while they grow.

    Nothing is sent before the first delta, so that an error until then is still an HTTP status.
    """
    try:
        async with generation.start() as deltas:
            first = await anext(deltas, None)
            if first is None:
                raise EngineFault("the model gave no answer")
            meter.saw(first)
            await exchange.open_stream(headers=generation.headers)
            await exchange.write(shape.opening() + shape.events(first))
            async for delta in deltas:
                meter.saw(delta)
                await exchange.write(shape.events(delta))
    finally:
        meter.close()
    await exchange.write(shape.closing(meter.usage))
    await exchange.close_stream()


async def gather(generation: Generation, meter: Meter) -> list[Answer]:
    """Return all answers when the last one is complete."""
    answers = [Answer() for _ in range(generation.num_answers)]
    parts: list[list[str]] = [[] for _ in answers]
    try:
        async with generation.start() as deltas:
            async for delta in deltas:
                meter.saw(delta)
                parts[delta.index].append(delta.text)
                answer = answers[delta.index]
                if delta.logprobs is not None:
                    answer.logprobs.extend(delta.logprobs)
                if delta.finish_reason is not None:
                    answer.finish_reason = delta.finish_reason
    finally:
        meter.close()
    for answer, texts in zip(answers, parts, strict=True):
        answer.text = "".join(texts)
    return answers


def usage_body(usage: Usage) -> GenerationUsage:
    """Return the usage as the API shows it."""
    return GenerationUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
    )
