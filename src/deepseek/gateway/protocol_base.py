"""Fields and shapes that several routes share.

Request Structs forbid unknown fields: a mistyped parameter is an error, never a default. Null means
"not given", as in the OpenAI API.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

MAX_INT32 = 2**31 - 1

ModelName = Annotated[
    str, Meta(min_length=1, max_length=256, description="Name of a deployment or an adapter.")
]
TokenId = Annotated[int, Meta(ge=0, le=MAX_INT32)]
TokenCount = Annotated[int, Meta(ge=1, le=MAX_INT32)]
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]
StopStrings = Annotated[list[StopString], Meta(max_length=16)]
LogitBias = dict[
    Annotated[str, Meta(pattern="^[0-9]{1,9}$")], Annotated[float, Meta(ge=-100, le=100)]
]
Penalty = Annotated[float, Meta(ge=-2, le=2)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A parameter of the OpenAI API that is refused here."""

    remedy: str
    harmless: tuple[Any, ...] = ()
    """Values that ask for nothing (besides null); they are taken and dropped."""


class StreamOptions(Struct, forbid_unknown_fields=True, frozen=True):
    """What a stream carries besides the answer."""

    include_usage: bool | None = None
    """A last event with the usage and no choices."""
    include_obfuscation: bool | None = None
    """Taken and ignored: events are never padded."""


class GenerationFields(Struct, forbid_unknown_fields=True, kw_only=True):
    """How to draw tokens; the same for chats and plain completions."""

    model: ModelName
    max_tokens: TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[
        int, Meta(ge=-1, le=MAX_INT32, description="Extension. 0 or -1 keeps all tokens.")
    ] | None = None  # fmt: skip
    min_p: Annotated[float, Meta(ge=0, le=1, description="Extension.")] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=10, description="Extension.")] | None = (
        None
    )
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    stop: StopString | StopStrings | None = None
    stop_token_ids: Annotated[
        list[TokenId], Meta(max_length=64, description="Extension.")
    ] | None = None  # fmt: skip
    ignore_eos: Annotated[bool, Meta(description="Extension.")] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_INT32, description="Extension.")] | None = None
    include_stop_str_in_output: Annotated[bool, Meta(description="Extension.")] | None = None
    logit_bias: LogitBias | None = None
    precision: Annotated[
        Literal["int8", "int4"],
        Meta(description="Extension. What to compute in; default: as the model's policy says."),
    ] | None = None  # fmt: skip
    service_tier: Annotated[
        Literal["auto", "default", "flex", "priority"],
        Meta(description="The class of the request, which a model's rules for precision name."),
    ] | None = None  # fmt: skip
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None


class PromptTokensDetails(Struct, frozen=True):
    """Where the prompt's tokens came from."""

    cached_tokens: int


class GenerationUsage(Struct, frozen=True):
    """Tokens that a generation cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class EncodingUsage(Struct, frozen=True):
    """Tokens that an encoder read."""

    prompt_tokens: int
    total_tokens: int


FinishReason = Literal["stop", "length", "tool_calls"]
