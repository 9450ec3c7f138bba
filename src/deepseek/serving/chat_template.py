"""A model's chat template: conversations to prompt text, as Hugging Face defines them.

Templates are Jinja, run in a sandbox: a model directory is data, not code that is trusted.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from deepseek.core.errors import InvalidRequest, ModelSourceError, UnsupportedParameter


class ChatTemplate:
    """One template with its special tokens."""

    def __init__(self, source: str, *, special_tokens: dict[str, str], origin: str) -> None:
        """Compile the template; raises `ModelSourceError` naming `origin` where it is not Jinja."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            variables = meta.find_undeclared_variables(environment.parse(source))
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelSourceError(
                f"{origin}: the chat template is not valid Jinja (line {error.lineno}): {error}"
            ) from error
        self.source = source
        self.supports_tools = "tools" in variables
        self._special_tokens = special_tokens

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        template_kwargs: dict[str, Any] | None = None,
    ) -> str:
        """Return the prompt, ready for the assistant's turn.

        Raises `UnsupportedParameter` for tools that the template would drop, and `InvalidRequest`
        with the template's own complaint.
        """
        if tools and not self.supports_tools:
            raise UnsupportedParameter(
                "this model's chat template knows no tools; leave `tools` out or use another model",
                param="tools",
            )
        context = {
            **self._special_tokens,
            "add_generation_prompt": True,
            "documents": None,
            **(template_kwargs or {}),
            "messages": [_for_template(message) for message in messages],
            "tools": list(tools) if tools else None,
        }
        try:
            return self._template.render(context)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise InvalidRequest(
                f"the chat template refuses these messages: {error}", param="messages"
            ) from error


def load_chat_template(path: Path) -> ChatTemplate | None:
    """Return the chat template of a model directory, or None where it has none."""
    config = _read_json(path / "tokenizer_config.json")
    file = path / "chat_template.jinja"
    source: Any = file.read_text() if file.exists() else config.get("chat_template")
    if isinstance(source, list):  # several named templates: the one for chat is `default`
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default")
    if not source:
        return None
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    special_tokens = {name: _token_text(config.get(name)) for name in names if config.get(name)}
    return ChatTemplate(source, special_tokens=special_tokens, origin=str(path))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ModelSourceError(f"{path}: not valid JSON: {error}") from error
    return value


def _token_text(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _for_template(message: dict[str, Any]) -> dict[str, Any]:
    """Give tool-call arguments as mappings, which is what templates expect."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [_with_parsed_arguments(call) for call in calls]}


def _with_parsed_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    try:
        function["arguments"] = json.loads(function["arguments"])
    except (ValueError, TypeError):
        return call
    return {**call, "function": function}


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """Serialise without HTML escapes, as templates expect."""
    ensure_ascii = bool(options.get("ensure_ascii", False))
    sort_keys = bool(options.get("sort_keys", False))
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training; serving only prints it."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body
