"""Bodies of `/v1/completions`."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from deepseek.gateway.protocol_base import GenerationFields, GenerationUsage, Refusal, TokenId

Prompt = (
    Annotated[str, Meta(min_length=1)]
    | Annotated[
        list[
            Annotated[str, Meta(min_length=1)]
            | TokenId
            | Annotated[list[TokenId], Meta(min_length=1)]
        ],
        Meta(min_length=1),
    ]
)
"""Text, texts, token ids, or several prompts of token ids; `inputs.py` refuses mixtures."""


class CompletionRequest(GenerationFields, forbid_unknown_fields=True, kw_only=True):
    """Prompts to continue."""

    prompt: Prompt
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool | None = None


COMPLETION_REFUSED = {
    "best_of": Refusal(remedy="use `n`", harmless=(1,)),
    "suffix": Refusal(
        remedy="models here continue a text and do not fill in; leave it out", harmless=("",)
    ),
}


class CompletionLogprobs(Struct, frozen=True):
    """Log-probabilities of the answer's tokens, one list entry per token."""

    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]] | None


class CompletionChoice(Struct, frozen=True):
    """One answer; `index` is the prompt's number times `n` plus the answer's number."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(Struct, frozen=True, kw_only=True):
    """Finished completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[CompletionChoice]
    usage: GenerationUsage
