"""Reads a YAML document into plain data, with the line of every key, and its faults as values.

It stands between the text and the settings classes: a document that is not YAML, repeats a key or
hides a bomb behind aliases yields `Fault`s with line numbers; what the keys mean is not its matter.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_CHARACTERS = 512 * 1024
MAX_NODES = 20_000
"""Values after aliases are expanded: ten lines of nested aliases can ask for 10^9."""
MAX_DEPTH = 32

KeyPath = tuple[str | int, ...]

_MERGE_TAG = "tag:yaml.org,2002:merge"
_PLAIN_TAGS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}
_REMEDIES = {
    "found character '\\t'": "indent with spaces, not tabs",
    "mapping values are not allowed here": "check the indentation, or put a value that contains "
    "': ' in quotes",
    "could not find expected ':'": "write `key: value`",
    "found undefined alias": "define it before with `&name`",
    "but found another document": "keep one document per file (one `---` at most)",
    "expected <block end>": "line the keys of one mapping up at the same column",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing wrong with a document."""

    line: int
    """Counted from 1."""
    path: KeyPath
    """Keys from the top to the fault; empty for the document as a whole."""
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (dotted(self.path), self.message) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class YamlDocument:
    """What a text says: its data, where each key stands, and what is wrong with it."""

    data: Any = None
    """Mappings, lists and scalars; None for an empty text and for one that could not be read."""
    faults: tuple[Fault, ...] = ()
    _lines: dict[KeyPath, int] = field(default_factory=dict)

    def line_of(self, path: KeyPath) -> int:
        """Return the line of a key, or of the nearest key above one that is not there."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)


def dotted(path: KeyPath) -> str:
    """Return a path as `models.chat.dtype`."""
    return ".".join(str(part) for part in path)


def read_yaml(text: str) -> YamlDocument:
    """Return the document; never raises, whatever the text holds."""
    if len(text) > MAX_CHARACTERS:
        return _unreadable(1, f"is longer than {MAX_CHARACTERS // 1024} KiB")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        return _unreadable(*_explain(error))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return _unreadable(line, f"holds the character {error.character!r}, which YAML forbids")
    except RecursionError:
        return _unreadable(1, "is nested too deeply")
    if node is None:
        return YamlDocument()
    reader = _TreeReader(loader)
    try:
        data = reader.value(node, ())
    except _DocumentTooLarge as error:
        return _unreadable(error.line, str(error))
    return YamlDocument(data=data, faults=tuple(reader.faults), _lines=reader.lines)


class _DocumentTooLarge(Exception):
    """The tree is deeper or wider than any real document; reading stops."""

    def __init__(self, message: str, *, line: int) -> None:
        super().__init__(message)
        self.line = line


class _TreeReader:
    """Turns a node tree into data; SafeLoader's own way forgets lines and duplicated keys."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self.faults: list[Fault] = []
        self.lines: dict[KeyPath, int] = {}
        self._loader = loader
        self._num_nodes = 0

    def value(self, node: Node, path: KeyPath, *, depth: int = 0) -> Any:
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise _DocumentTooLarge(
                f"holds more than {MAX_NODES} values once its aliases are expanded",
                line=_line(node),
            )
        if depth > MAX_DEPTH:
            raise _DocumentTooLarge(
                "is nested too deeply (does an alias contain itself?)", line=_line(node)
            )
        self.lines.setdefault(path, _line(node))
        if not isinstance(node, ScalarNode) and node.tag not in _PLAIN_TAGS:
            self._fault(_line(node), path, f"the tag {node.tag!r} is not supported; remove it")
            return None
        if isinstance(node, MappingNode):
            return self._mapping(node, path, depth=depth)
        if isinstance(node, SequenceNode):
            return [
                self.value(item, (*path, index), depth=depth + 1)
                for index, item in enumerate(node.value)
            ]
        return self._scalar(node, path)

    def _mapping(self, node: MappingNode, path: KeyPath, *, depth: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE_TAG:
                # Of several merged mappings the earlier wins, so later ones only fill gaps.
                for part in self._merge_parts(value_node, path, depth=depth):
                    merged = {**part, **merged}
                continue
            key = self._key(key_node, path)
            if key is None:
                continue
            line = _line(key_node)
            if key in first_lines:
                self._fault(
                    line, (*path, key), f"is given twice; it is already on line {first_lines[key]}"
                )
                continue
            first_lines[key] = line
            self.lines[(*path, key)] = line
            own[key] = self.value(value_node, (*path, key), depth=depth + 1)
        return {**merged, **own}

    def _merge_parts(self, node: Node, path: KeyPath, *, depth: int) -> Iterator[dict[str, Any]]:
        sources = node.value if isinstance(node, SequenceNode) else [node]
        for source in sources:
            part = self.value(source, path, depth=depth + 1)
            if isinstance(part, dict):
                yield part
            else:
                self._fault(_line(node), path, "`<<` merges mappings only; name one with `*alias`")

    def _key(self, node: Node, path: KeyPath) -> str | None:
        if isinstance(node, ScalarNode) and node.tag == "tag:yaml.org,2002:str":
            return str(node.value)
        shown = node.value if isinstance(node, ScalarNode) else "a list or mapping"
        self._fault(
            _line(node), path, f"the key {shown!r} is not text; write it in quotes if it is a name"
        )
        return None

    def _scalar(self, node: Node, path: KeyPath) -> Any:
        try:
            value = self._loader.construct_object(node)
        except yaml.MarkedYAMLError:
            self._fault(_line(node), path, f"the tag {node.tag!r} is not supported; remove it")
            return None
        except (ValueError, OverflowError) as error:
            self._fault(_line(node), path, f"cannot be read ({error}); put it in quotes")
            return None
        if isinstance(value, float) and not math.isfinite(value):
            self._fault(_line(node), path, "must be a finite number")
            return None
        return value

    def _fault(self, line: int, path: KeyPath, message: str) -> None:
        self.faults.append(Fault(line=line, path=path, message=message))


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _unreadable(line: int, message: str) -> YamlDocument:
    return YamlDocument(faults=(Fault(line=line, path=(), message=message),))


def _explain(error: yaml.MarkedYAMLError) -> tuple[int, str]:
    """Return the line of a syntax error and its words, with a remedy where one is known."""
    mark = error.problem_mark or error.context_mark
    problem = error.problem or "is not valid YAML"
    remedy = next((text for start, text in _REMEDIES.items() if problem.startswith(start)), "")
    message = f"not valid YAML: {problem}" + (f"; {remedy}" if remedy else "")
    return (mark.line + 1 if mark else 1), message
