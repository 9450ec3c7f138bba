"""Finding tool calls in a model's text while it streams.

Models write calls in the format of their training, which their chat template shows:

* Hermes, Qwen: `<tool_call>{"name": …, "arguments": …}</tool_call>`, text may stand around it;
* Llama 3: the whole answer is `{"name": …, "parameters": …}`, several are separated by `;`;
* Mistral: `[TOOL_CALLS] [{"name": …, "arguments": …}, …]`; the tag is a special token, which the
  text may or may not show.

A call that a grammar forced is always bare JSON. What looks like a call but is none (broken JSON, a
function that the request does not know) is given out as the text it is.
"""

import json
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol


class ToolFormat(StrEnum):
    """How a model writes a call."""

    HERMES = "hermes"
    LLAMA = "llama"
    MISTRAL = "mistral"

    @property
    def arguments_key(self) -> str:
        return "parameters" if self is ToolFormat.LLAMA else "arguments"


@dataclass(frozen=True, slots=True)
class Text:
    """Ordinary text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins; its arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The arguments of call `index`, as JSON; comes once."""

    index: int
    arguments: str


Event = Text | CallStart | CallArguments


class ToolCallParser(Protocol):
    """Follows one answer."""

    num_calls: int

    def feed(self, text: str) -> list[Event]:
        """Take new text; text that may turn out to be a call is held back."""
        ...

    def finish(self) -> list[Event]:
        """Give out what is held back, the answer being over."""
        ...


def format_of_template(source: str) -> ToolFormat:
    """Return the format in which a chat template teaches its model to call."""
    if "<tool_call>" in source:
        return ToolFormat.HERMES
    if "[TOOL_CALLS]" in source:
        return ToolFormat.MISTRAL
    return ToolFormat.LLAMA


def parser_for(
    tool_format: ToolFormat, names: Collection[str], *, is_forced: bool = False
) -> ToolCallParser:
    """Return a parser for one answer that may call the functions `names`.

    `is_forced` says that a grammar leaves no answer but a bare call.
    """
    if tool_format is ToolFormat.HERMES and not is_forced:
        return _TaggedParser(names)
    if tool_format is ToolFormat.MISTRAL:
        return _BareParser(names, tag="[TOOL_CALLS]", new_id=_mistral_id)
    return _BareParser(names, tag="<|python_tag|>")


def _call_id() -> str:
    return "call_" + os.urandom(12).hex()


def _mistral_id() -> str:
    return os.urandom(5).hex()[:9]  # Mistral's templates insist on nine letters or digits


_NAME = re.compile(r'^[\s\[]*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,')
_ARGUMENTS = re.compile(r'"(?:arguments|parameters)"\s*:\s*(.*)$', re.DOTALL)


class _Call:
    """One call's JSON as it grows; tells the name as soon as it is there."""

    def __init__(self, index: int, names: Collection[str], new_id: Callable[[], str]) -> None:
        self.source = ""
        self.is_started = False
        self._index = index
        self._names = names
        self._new_id = new_id

    def grow(self, text: str) -> list[Event]:
        self.source += text
        if self.is_started:
            return []
        found = _NAME.match(self.source)
        if found is None or found[1] not in self._names:
            return []
        return self._start(found[1])

    def complete(self, value: Any) -> list[Event] | None:
        """Return what is left to tell about the call `value`, or None where it is not one."""
        if not isinstance(value, dict) or value.get("name") not in self._names:
            return None
        events = [] if self.is_started else self._start(value["name"])
        arguments = value.get("arguments", value.get("parameters", {}))
        if not isinstance(arguments, str):  # some models write them as a string already
            arguments = json.dumps(arguments, ensure_ascii=False)
        return [*events, CallArguments(self._index, arguments)]

    def give_up(self) -> list[Event]:
        """Return what there is of the arguments; for a call whose name has been told already."""
        found = _ARGUMENTS.search(self.source)
        return [CallArguments(self._index, found[1].rstrip() if found else "")]

    def _start(self, name: str) -> list[Event]:
        self.is_started = True
        return [CallStart(self._index, self._new_id(), name)]


class _TaggedParser:
    """Calls between `<tool_call>` and `</tool_call>`, text around them."""

    OPEN, CLOSE = "<tool_call>", "</tool_call>"

    def __init__(self, names: Collection[str]) -> None:
        self.num_calls = 0
        self._names = names
        self._held = ""
        self._call: _Call | None = None

    def feed(self, text: str) -> list[Event]:
        events: list[Event] = []
        self._held += text
        while True:
            if self._call is None:
                before, tag, after = self._held.partition(self.OPEN)
                if not tag:
                    shown, self._held = _split_held(self._held, self.OPEN)
                    return [*events, *_text(shown)]
                events += _text(before.rstrip())
                self._call, self._held = _Call(self.num_calls, self._names, _call_id), after
            body, tag, after = self._held.partition(self.CLOSE)
            if not tag:
                grown, self._held = _split_held(self._held, self.CLOSE)
                return [*events, *self._call.grow(grown)]
            events += self._call.grow(body)
            events += self._end(self._call, closing=tag)
            self._call, self._held = None, after.lstrip()

    def finish(self) -> list[Event]:
        held, self._held = self._held, ""
        if self._call is None:
            return _text("" if self.num_calls and not held.strip() else held)
        call, self._call = self._call, None
        return [*call.grow(held), *self._end(call, closing="")]

    def _end(self, call: _Call, *, closing: str) -> list[Event]:
        events = call.complete(_parse(call.source))
        if events is None and not call.is_started:
            return _text(self.OPEN + call.source + closing)
        self.num_calls += 1
        return call.give_up() if events is None else events


class _BareParser:
    """Calls as bare JSON from the answer's first character, or after `tag`."""

    _HEADS = ('{"name"', '{"type"', '{"parameters"', '{"arguments"')

    def __init__(
        self, names: Collection[str], *, tag: str, new_id: Callable[[], str] = _call_id
    ) -> None:
        self.num_calls = 0
        self._names = names
        self._tag = tag
        self._new_id = new_id
        self._held = ""
        self._is_text = False
        self._first = _Call(0, names, new_id)

    def feed(self, text: str) -> list[Event]:
        self._held += text
        if not self._is_text and not self._may_be_call():
            self._is_text = True
            self._held, self._first.source = self._first.source + self._held, ""
        if self._is_text:
            before, tag, after = self._held.partition(self._tag)
            if tag:
                self._is_text, self._held = False, ""
                return [*_text(before.rstrip()), *self._first.grow(after)]
            shown, self._held = _split_held(self._held, self._tag)
            return _text(shown)
        if not self._first.source and self._tag.startswith(self._held.strip()):
            return []
        grown, self._held = self._held, ""
        return self._first.grow(grown)

    def finish(self) -> list[Event]:
        source, held = self._first.source, self._held
        self._first.source = self._held = ""
        if not source:
            return _text(held)
        self._first.source = source + held
        events: list[Event] = []
        for number, value in enumerate(_parse_all(self._first.source)):
            call = self._first if number == 0 else _Call(number, self._names, self._new_id)
            told = call.complete(value)
            if told is None:
                break
            events += told
            self.num_calls += 1
        if events:
            return events
        if self._first.is_started:
            self.num_calls = 1
            return self._first.give_up()
        return _text(self._first.source)

    def _may_be_call(self) -> bool:
        if self._first.is_started:
            return True
        text = re.sub(r"\s+", "", self._first.source + self._held)
        if self._tag.startswith(text):
            return True
        text = text.removeprefix("[")
        return any(head.startswith(text) or text.startswith(head) for head in self._HEADS)


def _text(text: str) -> list[Event]:
    return [Text(text)] if text else []


def _split_held(text: str, tag: str) -> tuple[str, str]:
    """Split off the end of `text` that may begin `tag`, with the white space before it."""
    keep = next(
        (n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0
    )
    shown = text[: len(text) - keep].rstrip()
    return shown, text[len(shown) :]


def _parse(source: str) -> Any:
    try:
        return json.loads(source)
    except (ValueError, RecursionError):
        return None


def _parse_all(source: str) -> list[Any]:
    """Return the JSON values one after the other, lists opened; what is broken ends them."""
    decoder = json.JSONDecoder()
    values: list[Any] = []
    at = 0
    while True:
        while at < len(source) and (source[at].isspace() or source[at] in ";,"):
            at += 1
        try:
            value, at = decoder.raw_decode(source, at)
        except (ValueError, RecursionError):
            return values
        values.extend(value if isinstance(value, list) else [value])
