"""Bodies of `/v1/chat/completions`."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from deepseek.gateway.protocol_base import (
    FinishReason,
    GenerationFields,
    GenerationUsage,
    Refusal,
    TokenCount,
)

FunctionName = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class TextPart(Struct, forbid_unknown_fields=True, frozen=True):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class AnswerPart(Struct, tag_field="type", tag="text", forbid_unknown_fields=True, frozen=True):
    """A piece of an earlier answer's text."""

    text: str


class RefusalPart(Struct, tag_field="type", tag="refusal", forbid_unknown_fields=True, frozen=True):
    """A refusal in an earlier answer; read as text."""

    refusal: str


TextContent = str | Annotated[list[TextPart], Meta(min_length=1)]
AnswerContent = str | Annotated[list[AnswerPart | RefusalPart], Meta(min_length=1)]


class CalledFunction(Struct, forbid_unknown_fields=True, frozen=True):
    """A call's function and its arguments, as JSON in a string."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    arguments: str


class ToolCall(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A call that the model made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class SystemMessage(
    Struct, tag_field="role", tag="system", forbid_unknown_fields=True, kw_only=True
):
    """Instructions."""

    content: TextContent
    name: str | None = None


class DeveloperMessage(
    Struct, tag_field="role", tag="developer", forbid_unknown_fields=True, kw_only=True
):
    """Instructions; rendered as a system message."""

    content: TextContent
    name: str | None = None


class UserMessage(Struct, tag_field="role", tag="user", forbid_unknown_fields=True, kw_only=True):
    """What the user says."""

    content: TextContent
    name: str | None = None


class AssistantMessage(
    Struct, tag_field="role", tag="assistant", forbid_unknown_fields=True, kw_only=True
):
    """An earlier answer, as this API returned it (so that it can be sent back unchanged)."""

    content: AnswerContent | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None
    """Passed to the chat template."""
    function_call: None = None
    audio: None = None
    annotations: list[Any] | None = None


class ToolMessage(Struct, tag_field="role", tag="tool", forbid_unknown_fields=True, kw_only=True):
    """What a tool returned."""

    content: TextContent
    tool_call_id: str
    name: str | None = None


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class FunctionDefinition(Struct, forbid_unknown_fields=True, kw_only=True):
    """A function the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON Schema of the arguments; none: a function without arguments."""
    strict: bool | None = None
    """Taken; arguments are held to the schema where `tool_choice` forces a call."""


class FunctionTool(Struct, forbid_unknown_fields=True):
    """A tool."""

    type: Literal["function"]
    function: FunctionDefinition


class ChosenFunction(Struct, forbid_unknown_fields=True):
    """Which function to call."""

    name: FunctionName


class NamedToolChoice(Struct, forbid_unknown_fields=True):
    """Forces a call of one function."""

    type: Literal["function"]
    function: ChosenFunction


class TextFormat(Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Any text."""


class JsonObjectFormat(Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """Any JSON object."""


class JsonSchema(Struct, forbid_unknown_fields=True, kw_only=True):
    """The schema of the answer."""

    name: FunctionName
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None
    """Taken; the answer always follows the schema."""


class JsonSchemaFormat(Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """JSON that follows a schema."""

    json_schema: JsonSchema


class ChatRequest(GenerationFields, forbid_unknown_fields=True, kw_only=True):
    """A conversation to continue."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: Annotated[
        dict[str, Any], Meta(description="Extension. Variables for the model's chat template.")
    ] | None = None  # fmt: skip
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


CHAT_REFUSED = {
    "audio": Refusal(remedy="answers are text; leave it out"),
    "best_of": Refusal(remedy="use `n`", harmless=(1,)),
    "function_call": Refusal(remedy="use `tool_choice`", harmless=("auto", "none")),
    "functions": Refusal(remedy="use `tools`", harmless=([],)),
    "modalities": Refusal(remedy="answers are text; leave it out", harmless=(["text"],)),
    "moderation": Refusal(remedy="no moderation model is served; leave it out"),
    "prediction": Refusal(remedy="leave it out; the answer is the same without it"),
    "prompt_cache_options": Refusal(
        remedy="prefixes are reused by themselves; leave it out", harmless=({},)
    ),
    "reasoning_effort": Refusal(
        remedy="set what the model's chat template knows in `chat_template_kwargs`"
    ),
    "store": Refusal(remedy="answers are not kept; leave it out", harmless=(False,)),
    "verbosity": Refusal(remedy="ask for it in the system message", harmless=("medium",)),
    "web_search_options": Refusal(remedy="there is no web search; leave it out"),
}


class TopLogprob(Struct, frozen=True):
    """An alternative at one position."""

    token: str
    logprob: float
    bytes: list[int] | None


class ContentLogprob(Struct, frozen=True):
    """The token chosen at one position, and the most probable ones."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    """Log-probabilities of the answer's tokens."""

    content: list[ContentLogprob] | None
    refusal: list[ContentLogprob] | None


class AnswerMessage(Struct, frozen=True, kw_only=True):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """A finished chat answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChatChoice]
    usage: GenerationUsage


class FunctionDelta(Struct, frozen=True):
    """A piece of a call: its name first, then its arguments."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(Struct, frozen=True, kw_only=True):
    """A piece of the call at `index`; the first one carries its id, type and name."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta
