"""Grammars that hold an answer to JSON, to a schema, or to a tool call (llguidance)."""

from collections.abc import Sequence
from typing import Any

import msgspec
from llguidance import LLMatcher

from deepseek.core.errors import InvalidGrammar
from deepseek.gateway.protocol_chat import (
    FunctionTool,
    JsonObjectFormat,
    JsonSchemaFormat,
    TextFormat,
)

_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One spacing only, that of Python's `json`: where any white space may follow, small models write
nothing else until their tokens are used up."""


def response_grammar(
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None,
) -> str | None:
    """Return the grammar of a `response_format`, None where any text will do."""
    if isinstance(response_format, JsonObjectFormat):
        return _json_grammar({"type": "object"})
    if isinstance(response_format, JsonSchemaFormat):
        return _json_grammar(response_format.json_schema.schema)
    return None


def call_grammar(tools: Sequence[FunctionTool], *, arguments_key: str) -> str:
    """Return a grammar whose only answers are one call of one of `tools`.

    Each function's schema is a document of its own, so that its `$ref`s mean what they meant.
    """
    names = [f"call_{number}" for number in range(len(tools))]
    rules = [f"start: {' | '.join(names)}"]
    for name, tool in zip(names, tools, strict=True):
        # A function's name is letters, digits, _ and -: nothing to escape.
        head = f'"{{\\"name\\": \\"{tool.function.name}\\", \\"{arguments_key}\\": "'
        schema = msgspec.json.encode(_with_spacing(_parameters(tool))).decode()
        rules.append(f'{name}: {head} %json {schema} "}}"')
    return "\n".join(rules)


def _parameters(tool: FunctionTool) -> dict[str, Any]:
    if tool.function.parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return tool.function.parameters


def _with_spacing(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "x-guidance": _SPACING}


def _json_grammar(schema: dict[str, Any]) -> str:
    try:
        grammar: str = LLMatcher.grammar_from_json_schema(_with_spacing(schema))
    except (ValueError, OverflowError, RecursionError) as error:
        raise InvalidGrammar(
            f"response_format: not a usable JSON schema: {error}", param="response_format"
        ) from None
    return grammar
