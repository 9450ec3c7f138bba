"""What a chat request's `tools` and `tool_choice` mean for one generation."""

from dataclasses import dataclass
from typing import Any

import msgspec

from deepseek.core.errors import InvalidRequest, UnsupportedParameter
from deepseek.gateway.constraints import call_grammar
from deepseek.gateway.protocol_chat import (
    ChatRequest,
    FunctionTool,
    NamedToolChoice,
    TextFormat,
)
from deepseek.gateway.tool_calls import (
    ToolCallParser,
    ToolFormat,
    format_of_template,
    parser_for,
)
from deepseek.serving.base import GenerateDeployment


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """The tools of one request."""

    definitions: list[dict[str, Any]]
    """For the chat template."""
    names: frozenset[str]
    tool_format: ToolFormat
    grammar: str | None
    """Set where a call is forced; it leaves no other answer."""

    def parser(self) -> ToolCallParser:
        """Return a parser for one answer."""
        return parser_for(self.tool_format, self.names, is_forced=self.grammar is not None)


def plan_tools(request: ChatRequest, deployment: GenerateDeployment) -> ToolUse | None:
    """Return how the request may call tools, None where it may not.

    With `tool_choice: none` the template does not show the tools at all. Raises `InvalidRequest`
    for a choice without tools, and `InvalidGrammar` where a forced call's schema has no answer.
    """
    choice = request.tool_choice or "auto"
    if not request.tools:
        if choice not in ("auto", "none"):
            raise InvalidRequest("tool_choice: forces a call, but there are no `tools`",
                                 param="tool_choice")  # fmt: skip
        return None
    _check_unique(request.tools)
    if choice == "none":
        return None
    if request.response_format is not None and not isinstance(request.response_format, TextFormat):
        raise UnsupportedParameter(
            "response_format: cannot hold an answer that may be a tool call; leave out one of "
            "`response_format` and `tools`, or set `tool_choice` to none",
            param="response_format",
        )
    tool_format = format_of_template(deployment.chat_template_source)
    forced = _forced(request.tools, choice)
    grammar = None
    if forced:
        grammar = call_grammar(forced, arguments_key=tool_format.arguments_key)
        deployment.check_grammar(grammar, param="tools")
    return ToolUse(
        definitions=[_definition(tool) for tool in request.tools],
        names=frozenset(tool.function.name for tool in request.tools),
        tool_format=tool_format,
        grammar=grammar,
    )


def _forced(tools: list[FunctionTool], choice: str | NamedToolChoice) -> list[FunctionTool]:
    """Return the tools of which one must be called, none where the model decides."""
    if choice == "auto":
        return []
    if not isinstance(choice, NamedToolChoice):
        return tools
    chosen = [tool for tool in tools if tool.function.name == choice.function.name]
    if not chosen:
        raise InvalidRequest(
            f"tool_choice: no tool is named {choice.function.name!r}", param="tool_choice"
        )
    return chosen


def _check_unique(tools: list[FunctionTool]) -> None:
    seen: set[str] = set()
    for number, tool in enumerate(tools):
        if tool.function.name in seen:
            raise InvalidRequest(
                f"tools[{number}].function.name: two functions have the name "
                f"{tool.function.name!r}",
                param=f"tools[{number}].function.name",
            )
        seen.add(tool.function.name)


def _definition(tool: FunctionTool) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(tool.function)
    given = {name: value for name, value in fields.items() if value is not None}
    return {"type": "function", "function": given}
