"""Tool calls: found in text however it is cut, forced by grammars, and in the API's shape."""

import json
from collections.abc import Iterator
from typing import Any

import llguidance
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher

from deepseek.gateway.constraints import call_grammar, response_grammar
from deepseek.gateway.protocol_chat import (
    FunctionDefinition,
    FunctionTool,
    JsonObjectFormat,
    JsonSchema,
    JsonSchemaFormat,
)
from deepseek.gateway.tool_calls import (
    CallArguments,
    CallStart,
    Event,
    Text,
    ToolFormat,
    format_of_template,
    parser_for,
)
from tests.gateway.conftest import Running

NAMES = ("get_weather", "add")
Found = tuple[str, list[tuple[str, Any]], bool]


def read(events: list[Event]) -> Found:
    """Return the text, the calls with their arguments, and whether each began before it ended."""
    text = "".join(event.text for event in events if isinstance(event, Text))
    starts = [event for event in events if isinstance(event, CallStart)]
    arguments = {e.index: e.arguments for e in events if isinstance(e, CallArguments)}
    assert [start.index for start in starts] == list(range(len(starts)))
    assert set(arguments) == set(range(len(starts)))
    assert len({start.id for start in starts}) == len(starts)
    calls = [(start.name, arguments[start.index]) for start in starts]
    return text, [(name, _value(given_)) for name, given_ in calls], bool(starts)


def _value(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def parse(tool_format: ToolFormat, pieces: list[str], **options: Any) -> Found:
    parser = parser_for(tool_format, NAMES, **options)
    events = [event for piece in pieces for event in parser.feed(piece)]
    events += parser.finish()
    found = read(events)
    assert parser.num_calls == len(found[1])
    return found


HERMES_ULM = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
HERMES_ADD = '<tool_call>\n{"arguments": {"a": [1, {"b": 2}]}, "name": "add"}\n</tool_call>'
LLAMA_ULM = '{"name": "get_weather", "parameters": {"city": "Ulm"}}'
LLAMA_ADD = '{"name": "add", "parameters": {"a": [1, {"b": 2}]}}'
MISTRAL = (
    '[{"name": "get_weather", "arguments": {"city": "Ulm"}}, '
    '{"name": "add", "arguments": {"a": [1, {"b": 2}]}}]'
)
WEATHER, ADD = ("get_weather", {"city": "Ulm"}), ("add", {"a": [1, {"b": 2}]})

CASES: list[tuple[ToolFormat, str, str, list[tuple[str, Any]]]] = [
    # format, the model's words, the text shown, the calls
    (ToolFormat.HERMES, "Just text, <b> too.", "Just text, <b> too.", []),
    (ToolFormat.HERMES, HERMES_ULM, "", [WEATHER]),
    (ToolFormat.HERMES, f"Hm.\n\n{HERMES_ULM}\n{HERMES_ADD}\n", "Hm.", [WEATHER, ADD]),
    (ToolFormat.HERMES, f"{HERMES_ULM} done", "done", [WEATHER]),
    (ToolFormat.HERMES, "a <tool_", "a <tool_", []),
    (ToolFormat.HERMES, "<tool_call>nonsense</tool_call>!", "<tool_call>nonsense</tool_call>!", []),
    (
        ToolFormat.HERMES,
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        [],
    ),
    (ToolFormat.HERMES, '<tool_call>{"name": "add"}</tool_call>', "", [("add", {})]),
    (ToolFormat.HERMES, '<tool_call>{"name": "add", "arguments": {}}', "", [("add", {})]),
    (ToolFormat.HERMES, '<tool_call>{"name": "add", "arguments": {"a', "", [("add", '{"a')]),
    (ToolFormat.LLAMA, "Hello {you}", "Hello {you}", []),
    (ToolFormat.LLAMA, '{"city": "Ulm"}', '{"city": "Ulm"}', []),
    (ToolFormat.LLAMA, '{"name": "Ulm"}', '{"name": "Ulm"}', []),
    (ToolFormat.LLAMA, LLAMA_ULM, "", [WEATHER]),
    (ToolFormat.LLAMA, f"<|python_tag|>{LLAMA_ULM}; {LLAMA_ADD}", "", [WEATHER, ADD]),
    (ToolFormat.LLAMA, f"\n {LLAMA_ULM}\n", "", [WEATHER]),
    (ToolFormat.MISTRAL, MISTRAL, "", [WEATHER, ADD]),
    (ToolFormat.MISTRAL, f"[TOOL_CALLS] {MISTRAL}", "", [WEATHER, ADD]),
    (ToolFormat.MISTRAL, f"Let me see. [TOOL_CALLS]{MISTRAL}", "Let me see.", [WEATHER, ADD]),
    (ToolFormat.MISTRAL, "[1] is a footnote [TOO", "[1] is a footnote [TOO", []),
]  # fmt: skip


@pytest.mark.parametrize(("tool_format", "words", "text", "calls"), CASES)
def test_calls_are_found_however_the_text_is_cut(
    tool_format: ToolFormat, words: str, text: str, calls: list[tuple[str, Any]]
) -> None:
    for pieces in cuts(words):
        shown, found, _ = parse(tool_format, pieces)
        assert (shown.strip(), found) == (text, calls), pieces


def cuts(words: str) -> Iterator[list[str]]:
    """Yield the text whole, in single characters, and in two pieces at every place."""
    yield [words]
    yield list(words)
    for at in range(1, len(words)):
        yield [words[:at], words[at:]]


@given(st.text(alphabet='<tool_call>/[TOOL_CALLS] {}"name:,\n', max_size=80))
def test_text_without_calls_comes_out_unchanged(words: str) -> None:
    for tool_format in ToolFormat:
        shown, calls, _ = parse(tool_format, list(words))
        if not calls:
            dropped = shown.replace("[TOOL_CALLS]", "").split()
            assert dropped == words.replace("[TOOL_CALLS]", "").split()


def test_text_before_a_call_and_the_calls_name_come_at_once() -> None:
    parser = parser_for(ToolFormat.HERMES, NAMES)
    assert parser.feed("Let me see.") == [Text("Let me see.")]
    assert parser.feed('\n<tool_call>\n{"name": "add"') == []
    (start,) = parser.feed(', "argu')
    assert isinstance(start, CallStart)
    assert start.name == "add"
    assert parser.feed('ments": {"a": 1}}\n</tool_call>') == [CallArguments(0, '{"a": 1}')]
    assert parser.finish() == []


def test_mistral_ids_have_nine_letters_or_digits() -> None:
    parser = parser_for(ToolFormat.MISTRAL, NAMES)
    events = [*parser.feed(MISTRAL), *parser.finish()]
    for event in events:
        if isinstance(event, CallStart):
            assert len(event.id) == 9
            assert event.id.isalnum()


@pytest.mark.parametrize(
    ("template", "tool_format"),
    [
        ("{% if tools %}<tool_call>{% endif %}", ToolFormat.HERMES),
        ("{{ '[TOOL_CALLS]' }}", ToolFormat.MISTRAL),
        ("<|python_tag|>", ToolFormat.LLAMA),
        ("", ToolFormat.LLAMA),
    ],
)
def test_the_template_shows_the_format(template: str, tool_format: ToolFormat) -> None:
    assert format_of_template(template) is tool_format


def accepts(grammar: str, text: str) -> bool:
    """Whether the grammar takes the whole text, byte by byte."""
    tokenizer = llguidance.LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, grammar)
    tokens = tokenizer.tokenize_str(text)
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


def function(name: str, parameters: dict[str, Any] | None = None) -> FunctionTool:
    return FunctionTool("function", FunctionDefinition(name=name, parameters=parameters))


def test_a_forced_call_is_one_of_the_tools_with_valid_arguments() -> None:
    shared = {"q": {"type": "integer"}}
    tools = [
        function("one", {"type": "object", "properties": {"a": {"$ref": "#/$defs/q"}},
                         "required": ["a"], "additionalProperties": False, "$defs": shared}),
        function("none"),
    ]  # fmt: skip
    grammar = call_grammar(tools, arguments_key="arguments")
    assert LLMatcher.validate_grammar(grammar) == ""
    assert accepts(grammar, '{"name": "one", "arguments": {"a": 7}}')
    assert accepts(grammar, '{"name": "none", "arguments": {}}')
    assert not accepts(grammar, '{"name": "one", "arguments": {"a": "7"}}')
    assert not accepts(grammar, '{"name": "one", "arguments": {}}')
    assert not accepts(grammar, '{"name": "two", "arguments": {}}')
    assert not accepts(grammar, '{"name": "one", "arguments": {"a":   7}}')
    assert not accepts(grammar, "text")
    assert accepts(
        call_grammar(tools, arguments_key="parameters"), '{"name": "one", "parameters": {"a": 7}}'
    )


def test_a_forced_call_is_read_back_in_every_format() -> None:
    for tool_format in ToolFormat:
        text = f'{{"name": "add", "{tool_format.arguments_key}": {{"a": 7}}}}'
        for pieces in cuts(text):
            assert parse(tool_format, pieces, is_forced=True)[:2] == ("", [("add", {"a": 7})])


def test_response_formats_become_grammars() -> None:
    grammar = response_grammar(JsonObjectFormat())
    assert grammar is not None
    assert accepts(grammar, '{"a": [1, 2]}')
    assert not accepts(grammar, "[1]")
    assert not accepts(grammar, '{"a":\n\n\n1}')
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"]}
    grammar = response_grammar(JsonSchemaFormat(JsonSchema(name="n", schema=schema)))
    assert grammar is not None
    assert accepts(grammar, '{"a": "x"}')
    assert not accepts(grammar, '{"a": "y"}')
    assert response_grammar(None) is None


TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "d",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def asking(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.mark.server
async def test_the_client_gets_tool_calls(running: Running) -> None:
    answer = await running.openai.chat.completions.create(
        model="caller", messages=asking(f"Let me see. {HERMES_ULM}"), tools=TOOLS
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Ulm"}
    (rendered,) = running.deployments.generators["caller"].rendered
    assert rendered["tools"] == TOOLS


@pytest.mark.server
async def test_the_client_streams_tool_calls(running: Running) -> None:
    stream = await running.openai.chat.completions.create(
        model="caller", messages=asking(f"Let me see. {HERMES_ULM}"), tools=TOOLS, stream=True
    )
    text, name, arguments, reasons = "", "", "", []
    async for chunk in stream:
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        reasons.append(choice.finish_reason)
        for call in choice.delta.tool_calls or ():
            assert call.index == 0
            assert call.function is not None
            if call.function.name:
                assert call.id
                assert call.type == "function"
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    assert (text, name, json.loads(arguments)) == (
        "Let me see.",
        "get_weather",
        {"city": "Ulm"},
    )
    assert reasons[-1] == "tool_calls"
    assert set(reasons[:-1]) == {None}


@pytest.mark.server
async def test_tools_that_are_not_used_leave_an_ordinary_answer(running: Running) -> None:
    for extra in ({}, {"tool_choice": "none"}, {"tool_choice": "auto"}):
        answer = await running.openai.chat.completions.create(
            model="caller", messages=asking("no  call"), tools=TOOLS, extra_body=extra
        )
        assert answer.choices[0].message.content == "no  call"
        assert answer.choices[0].message.tool_calls is None
        assert answer.choices[0].finish_reason == "stop"
    shown = [r["tools"] for r in running.deployments.generators["caller"].rendered]
    assert shown == [TOOLS, None, TOOLS]


@pytest.mark.server
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
async def test_a_forced_call_has_a_grammar_and_is_read_as_a_call(
    running: Running, choice: Any
) -> None:
    words = '{"name": "get_weather", "arguments": {"city": "Ulm"}}'
    answer = await running.openai.chat.completions.create(
        model="caller", messages=asking(words), tools=TOOLS, tool_choice=choice
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None
    assert answer.choices[0].message.tool_calls is not None
    (options,) = running.deployments.generators["caller"].asked
    assert options.sampling.grammar is not None
    assert accepts(options.sampling.grammar, words)
