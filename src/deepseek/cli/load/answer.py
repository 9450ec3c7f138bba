"""Reads one answer as its bytes arrive: when tokens came, how many, how it ended."""

import time
from dataclasses import dataclass, field

import msgspec

from deepseek.cli.http_client import HttpResponse


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """What was seen of one request; times are of one monotonic clock, in seconds."""

    due_s: float
    """When it should have been sent."""
    sent_s: float = 0.0
    done_s: float = 0.0
    token_times_s: list[float] = field(default_factory=list)
    """Arrival of each chunk that carried text."""
    input_tokens: int | None = None
    """As the server counted them."""
    output_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    """What kind of failure it was; None for a complete answer."""
    text: str = ""
    """The answer, where it was asked to be kept."""


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: msgspec.Raw | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _ErrorBody(msgspec.Struct):
    code: str | int | None = None
    type: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _ErrorBody | str | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None
    error: _ErrorBody | str | None = None


_chunk_decoder = msgspec.json.Decoder(_Chunk)
_answer_decoder = msgspec.json.Decoder(_Answer)


class AnswerReader:
    """Fills a record; `on_event` runs once per token, so it does little."""

    def __init__(self, record: RequestRecord, *, keep_text: bool = False) -> None:
        self._record = record
        self._keep_text = keep_text
        self._texts: list[str] = []
        self._done = False

    def on_event(self, data: bytes) -> None:
        now = time.perf_counter()
        if data == b"[DONE]":
            self._done = True
            return
        chunk = _chunk_decoder.decode(data)
        for choice in chunk.choices:
            delta = choice.delta
            if delta.content or delta.reasoning_content or delta.tool_calls:
                self._record.token_times_s.append(now)
                if self._keep_text and delta.content:
                    self._texts.append(delta.content)
            if choice.finish_reason is not None:
                self._record.finish_reason = choice.finish_reason
        if chunk.usage is not None:
            self._count(chunk.usage)
        if chunk.error is not None:
            self._record.error = f"error in the stream: {_kind(chunk.error)}"

    def finish(self, response: HttpResponse, *, streamed: bool) -> None:
        """Judge the complete response."""
        record = self._record
        record.text = "".join(self._texts)
        if response.status != 200:
            record.error = f"{response.status} {_kind(_decode_error(response.body))}".strip()
        elif not streamed:
            self._count(_answer_decoder.decode(response.body).usage or _Usage())
        elif not response.is_event_stream:
            record.error = "not an event stream"
        elif record.error is None and not (self._done or record.finish_reason):
            # `[DONE]` alone is no measure: some servers end with the finish reason.
            record.error = "stream ended early"

    def _count(self, usage: _Usage) -> None:
        self._record.input_tokens = usage.prompt_tokens
        self._record.output_tokens = usage.completion_tokens


def _decode_error(body: bytes) -> _ErrorBody | str | None:
    try:
        return _answer_decoder.decode(body).error
    except msgspec.DecodeError:
        return None


def _kind(error: _ErrorBody | str | None) -> str:
    """Return a word to count errors by, never the message: it may differ each time."""
    if isinstance(error, _ErrorBody):
        return str(error.code or error.type or "")
    return ""
