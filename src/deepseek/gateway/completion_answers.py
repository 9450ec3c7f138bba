"""Plain completions as bytes: whole, and as server-sent events."""

import time
from collections.abc import Sequence

import msgspec

from deepseek.gateway.chat_answers import DONE
from deepseek.gateway.exchange import new_id
from deepseek.gateway.generation import Answer, usage_body
from deepseek.gateway.logprobs import completion_logprobs
from deepseek.gateway.protocol_completions import Completion, CompletionChoice
from deepseek.serving.base import TextDelta, Usage

_encode = msgspec.json.Encoder().encode


class CompletionEvents:
    """One streamed completion; implements `deepseek.gateway.generation.EventShape`."""

    def __init__(
        self,
        model: str,
        *,
        echoes: Sequence[str],
        num_logprobs: int | None,
        include_usage: bool,
    ) -> None:
        """`echoes` has one text per answer, shown before it; empty where none is asked for."""
        self._head = (
            b'data: {"id":%b,"object":"text_completion","created":%d,"model":%b,'
            b'"system_fingerprint":null,"choices":['
        ) % (_encode(new_id("cmpl-")), int(time.time()), _encode(model))
        self._choices = [self._head + b'{"index":%d,"text":' % i for i in range(len(echoes))]
        self._tail = b'}],"usage":null}\n\n' if include_usage else b"}]}\n\n"
        self._include_usage = include_usage
        self._num_logprobs = num_logprobs
        self._echoes = echoes
        self._offsets = [len(echo) for echo in echoes]

    def opening(self) -> bytes:
        return b"".join(
            b'%b%b,"logprobs":null,"finish_reason":null%b'
            % (self._choices[index], _encode(echo), self._tail)
            for index, echo in enumerate(self._echoes)
            if echo
        )

    def events(self, delta: TextDelta) -> bytes:
        return b'%b%b,"logprobs":%b,"finish_reason":%b%b' % (
            self._choices[delta.index],
            _encode(delta.text),
            self._logprobs(delta),
            b"null" if delta.finish_reason is None else _encode(delta.finish_reason),
            self._tail,
        )

    def closing(self, usage: Usage) -> bytes:
        if not self._include_usage:
            return DONE
        return self._head + b'],"usage":' + _encode(usage_body(usage)) + b"}\n\n" + DONE

    def _logprobs(self, delta: TextDelta) -> bytes:
        if delta.logprobs is None or self._num_logprobs is None:
            return b"null"
        offset = self._offsets[delta.index]
        self._offsets[delta.index] += sum(len(p.chosen.token) for p in delta.logprobs)
        return _encode(
            completion_logprobs(delta.logprobs, num_top=self._num_logprobs, offset=offset)
        )


def completion(
    model: str,
    answers: Sequence[Answer],
    usage: Usage,
    *,
    echoes: Sequence[str],
    num_logprobs: int | None,
) -> bytes:
    """Return finished completions as JSON."""
    choices = [
        CompletionChoice(
            index=index,
            text=echo + answer.text,
            logprobs=None
            if num_logprobs is None
            else completion_logprobs(answer.logprobs, num_top=num_logprobs, offset=len(echo)),
            finish_reason="length" if answer.finish_reason == "length" else "stop",
        )
        for index, (answer, echo) in enumerate(zip(answers, echoes, strict=True))
    ]
    return _encode(
        Completion(
            id=new_id("cmpl-"),
            created=int(time.time()),
            model=model,
            choices=choices,
            usage=usage_body(usage),
        )
    )
