"""Log-probabilities in the two shapes of the OpenAI API."""

from collections.abc import Sequence

from deepseek.gateway.protocol_chat import ChatLogprobs, ContentLogprob, TopLogprob
from deepseek.gateway.protocol_completions import CompletionLogprobs
from deepseek.serving.base import PositionLogprobs, TokenText

IMPOSSIBLE_LOGPROB = -9999.0
"""Shown for a token that the mask ruled out: JSON has no minus infinity (OpenAI's number)."""


def chat_logprobs(positions: Sequence[PositionLogprobs]) -> ChatLogprobs:
    """Return a chat answer's log-probabilities."""
    content = [
        ContentLogprob(
            token=position.chosen.token,
            logprob=_finite(position.chosen.logprob),
            bytes=list(position.chosen.token_bytes),
            top_logprobs=[
                TopLogprob(
                    token=other.token,
                    logprob=_finite(other.logprob),
                    bytes=list(other.token_bytes),
                )
                for other in position.top
            ],
        )
        for position in positions
    ]
    return ChatLogprobs(content=content, refusal=None)


def completion_logprobs(
    positions: Sequence[PositionLogprobs], *, num_top: int, offset: int
) -> CompletionLogprobs:
    """Return a completion's log-probabilities; `offset` is the first token's place in the text."""
    offsets: list[int] = []
    for position in positions:
        offsets.append(offset)
        offset += len(position.chosen.token)
    top = [{_key(t): _finite(t.logprob) for t in position.top} for position in positions]
    return CompletionLogprobs(
        text_offset=offsets,
        token_logprobs=[_finite(position.chosen.logprob) for position in positions],
        tokens=[_key(position.chosen) for position in positions],
        top_logprobs=top if num_top else None,
    )


def _finite(logprob: float) -> float:
    return max(logprob, IMPOSSIBLE_LOGPROB)


def _key(token: TokenText) -> str:
    """Return a token's text, or its bytes where they are no text: keys must not fall together."""
    if "\ufffd" not in token.token:
        return token.token
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.token_bytes)
