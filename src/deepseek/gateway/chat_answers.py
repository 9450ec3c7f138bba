"""Chat answers as bytes: whole, and as server-sent events.

Events are put together from parts encoded once per request: the text is all that changes from one
to the next, and 50 events must cost less than a millisecond.
"""

import time
from collections.abc import Sequence

import msgspec

from deepseek.gateway.exchange import new_id
from deepseek.gateway.generation import Answer, usage_body
from deepseek.gateway.logprobs import chat_logprobs
from deepseek.gateway.protocol_base import FinishReason
from deepseek.gateway.protocol_chat import (
    AnswerMessage,
    CalledFunction,
    ChatChoice,
    ChatCompletion,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
)
from deepseek.gateway.tool_calls import CallStart, Event, Text, ToolCallParser
from deepseek.gateway.tool_use import ToolUse
from deepseek.serving.base import PositionLogprobs, TextDelta, Usage

_encode = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"


class ChatEvents:
    """One streamed chat; implements `deepseek.gateway.generation.EventShape`."""

    def __init__(self, model: str, *, n: int, tools: ToolUse | None, include_usage: bool) -> None:
        head = (
            b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,'
            b'"system_fingerprint":null,"choices":['
        ) % (_encode(new_id("chatcmpl-")), int(time.time()), _encode(model))
        self._head = head
        self._choices = [head + b'{"index":%d,"delta":' % index for index in range(n)]
        self._tail = b'}],"usage":null}\n\n' if include_usage else b"}]}\n\n"
        self._include_usage = include_usage
        self._parsers = None if tools is None else [tools.parser() for _ in range(n)]

    def opening(self) -> bytes:
        delta = b'{"role":"assistant","content":"","refusal":null}'
        return b"".join(self._event(index, delta) for index in range(len(self._choices)))

    def events(self, delta: TextDelta) -> bytes:
        if self._parsers is not None:
            return self._parsed_events(delta, self._parsers[delta.index])
        out = b""
        if delta.text or delta.logprobs or delta.finish_reason is None:
            out = self._event(delta.index, _content(delta.text), _logprobs(delta.logprobs))
        if delta.finish_reason is not None:
            out += self._finish(delta.index, delta.finish_reason)
        return out

    def closing(self, usage: Usage) -> bytes:
        if not self._include_usage:
            return DONE
        return self._head + b'],"usage":' + _encode(usage_body(usage)) + b"}\n\n" + DONE

    def _parsed_events(self, delta: TextDelta, parser: ToolCallParser) -> bytes:
        events = parser.feed(delta.text)
        if delta.finish_reason is not None:
            events += parser.finish()
        out: list[bytes] = []
        logprobs = _logprobs(delta.logprobs)
        for event in events:
            out.append(self._event(delta.index, _delta(event), logprobs))
            logprobs = b"null"
        if not events and delta.logprobs:
            out.append(self._event(delta.index, b"{}", logprobs))
        if delta.finish_reason is not None:
            out.append(self._finish(delta.index, _reason(delta.finish_reason, parser)))
        return b"".join(out)

    def _event(self, index: int, delta: bytes, logprobs: bytes = b"null") -> bytes:
        return b'%b%b,"logprobs":%b,"finish_reason":null%b' % (
            self._choices[index], delta, logprobs, self._tail,
        )  # fmt: skip

    def _finish(self, index: int, reason: str) -> bytes:
        return b'%b{},"logprobs":null,"finish_reason":%b%b' % (
            self._choices[index], _encode(reason), self._tail,
        )  # fmt: skip


def chat_completion(
    model: str,
    answers: Sequence[Answer],
    usage: Usage,
    *,
    tools: ToolUse | None,
    with_logprobs: bool,
) -> bytes:
    """Return a finished chat as JSON."""
    choices = [
        _choice(index, answer, tools=tools, with_logprobs=with_logprobs)
        for index, answer in enumerate(answers)
    ]
    return _encode(
        ChatCompletion(
            id=new_id("chatcmpl-"),
            created=int(time.time()),
            model=model,
            choices=choices,
            usage=usage_body(usage),
        )
    )


def _choice(
    index: int, answer: Answer, *, tools: ToolUse | None, with_logprobs: bool
) -> ChatChoice:
    logprobs = chat_logprobs(answer.logprobs) if with_logprobs else None
    if tools is None:
        message = AnswerMessage(content=answer.text)
        return ChatChoice(index, message, logprobs, _finish_reason(answer.finish_reason))
    parser = tools.parser()
    events = [*parser.feed(answer.text), *parser.finish()]
    text = "".join(event.text for event in events if isinstance(event, Text))
    calls = _calls(events)
    message = AnswerMessage(
        content=text or (None if calls else ""), tool_calls=calls or msgspec.UNSET
    )
    return ChatChoice(index, message, logprobs, _reason(answer.finish_reason, parser))


def _calls(events: Sequence[Event]) -> list[ToolCall]:
    starts: list[CallStart] = []
    arguments: dict[int, str] = {}
    for event in events:
        if isinstance(event, CallStart):
            starts.append(event)
        elif not isinstance(event, Text):
            arguments[event.index] = event.arguments
    return [
        ToolCall(
            id=start.id,
            function=CalledFunction(start.name, arguments.get(start.index, "")),
        )
        for start in starts
    ]


def _reason(reason: str, parser: ToolCallParser) -> FinishReason:
    if reason == "stop" and parser.num_calls:
        return "tool_calls"
    return _finish_reason(reason)


def _finish_reason(reason: str) -> FinishReason:
    return "length" if reason == "length" else "stop"


def _content(text: str) -> bytes:
    return b'{"content":%b}' % _encode(text)


def _delta(event: Event) -> bytes:
    if isinstance(event, Text):
        return _content(event.text)
    if isinstance(event, CallStart):
        call = ToolCallDelta(
            index=event.index,
            id=event.id,
            type="function",
            function=FunctionDelta(name=event.name, arguments=""),
        )
    else:
        call = ToolCallDelta(index=event.index, function=FunctionDelta(arguments=event.arguments))
    return b'{"tool_calls":[%b]}' % _encode(call)


def _logprobs(positions: Sequence[PositionLogprobs] | None) -> bytes:
    return b"null" if positions is None else _encode(chat_logprobs(positions))
