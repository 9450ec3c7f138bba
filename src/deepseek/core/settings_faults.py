"""Says in plain words what is wrong with settings: which key, what it must be, the remedy.

Pydantic finds the faults; its sentences speak of inputs and instances, so only their place and
kind are used here, and the words come from the settings classes themselves.
"""

import difflib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from deepseek.core.settings import (
    DurationSeconds,
    OptionalDurationSeconds,
    OptionalSizeBytes,
    PartOfWhole,
    Settings,
    SizeBytes,
)

_SIZE_PARSERS = (get_args(SizeBytes)[1], get_args(OptionalSizeBytes)[1])
_DURATION_PARSERS = (get_args(DurationSeconds)[1], get_args(OptionalDurationSeconds)[1])
_PART_PARSER = get_args(PartOfWhole)[1]

Place = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One field somewhere below a settings class."""

    path: tuple[str, ...]
    """Section names and field name; `<name>` stands for a key that the operator chooses."""
    field: FieldInfo


def iter_settings(root: type[Settings], path: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Yield every field of a settings class and of the classes below it, sections included."""
    for name, field in root.model_fields.items():
        here = (*path, name)
        yield Setting(path=here, field=field)
        inner = _section(field.annotation)
        if inner is not None:
            deeper = here if _is_settings(field.annotation) else (*here, "<name>")
            yield from iter_settings(inner, deeper)


def plain_faults(error: ValidationError, root: type[Settings]) -> list[tuple[Place, str]]:
    """Return the place and a plain sentence for each of pydantic's findings."""
    return [
        (tuple(part for part in found["loc"] if part != "[key]"), _sentence(found, root))
        for found in error.errors(include_url=False)
    ]


def _sentence(found: Mapping[str, Any], root: type[Settings]) -> str:
    place, kind, value = found["loc"], found["type"], found["input"]
    if kind == "extra_forbidden":
        return _unknown_key(str(place[-1]), place[:-1], root)
    field, annotation = _resolve(root, place)
    if kind == "missing":
        return f"is missing; give {_first_sentence(field)}"
    if kind == "value_error":
        return f"{value!r} {found['ctx']['error']}" if place else str(found["ctx"]["error"])
    if place[-1:] == ("[key]",):
        return f"the name {place[-2]!r} is not valid; use {_key_words(root, place[:-2])}"
    if kind == "string_too_short":
        return f"must not be empty; give {_first_sentence(field)}"
    if value is None:
        return f"is empty; give {expected(field, annotation)}, or remove the key"
    return f"must be {expected(field, annotation)}, not {_shown(value)}"


def expected(field: FieldInfo | None, annotation: Any) -> str:
    """Return in words what a setting takes: `a whole number from 1 to 1024`."""
    inner = _without_none(annotation)
    if _is_settings(inner) or get_origin(inner) is dict:
        at_least = " with at least one entry" if field and _bound(field, "min_length") else ""
        return f"a mapping{at_least} (lines of `key: value`)"
    if get_origin(inner) is list:
        return "a list (lines of `- value`)"
    if isinstance(inner, type) and issubclass(inner, Enum):
        return "one of " + ", ".join(str(member.value) for member in inner)
    if get_origin(inner) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(inner))
    metadata = field.metadata if field else []
    if any(parser in metadata for parser in _SIZE_PARSERS):
        return "a size (bytes, or a number with KiB, MiB, GiB)" + _range_words(metadata)
    if any(parser in metadata for parser in _DURATION_PARSERS):
        return "a duration (seconds, or a number with ms, s, m, h)" + _range_words(metadata)
    if _PART_PARSER in metadata:
        return 'a part of the whole (a number from 0 to 1, or a percentage such as "90%")'
    words = {int: "a whole number", float: "a number", bool: "true or false"}.get(inner)
    if words is not None:
        return words + _range_words(metadata)
    if field is not None and _bound(field, "pattern"):
        return _first_sentence(field)
    return "text (in quotes where it looks like a number or a date)"


def _range_words(metadata: list[Any]) -> str:
    least = next((m.ge for m in metadata if isinstance(m, Ge)), None)
    above = next((m.gt for m in metadata if isinstance(m, Gt)), None)
    most = next((m.le for m in metadata if isinstance(m, Le)), None)
    if least is not None and most is not None:
        return f" from {least} to {most}"
    parts = [
        f"{words} {bound:,}" if isinstance(bound, int) and bound > 9999 else f"{words} {bound}"
        for words, bound in (("at least", least), ("more than", above), ("at most", most))
        if bound is not None
    ]
    return " of " + " and ".join(parts) if parts else ""


def _unknown_key(key: str, section: Place, root: type[Settings]) -> str:
    _, annotation = _resolve(root, section)
    fields = _section(annotation)
    if fields is None:
        return "unknown key"
    names = list(fields.model_fields)
    aliases = [field.alias or name for name, field in fields.model_fields.items()]
    spellings = aliases if key != key.lower() else names
    if key in {*names, *aliases}:
        return "is given in both spellings (snake_case and camelCase); keep one"
    close = difflib.get_close_matches(key, spellings, n=1)
    if close:
        return f"unknown key; did you mean {close[0]!r}?"
    elsewhere = [".".join(s.path[:-1]) for s in iter_settings(root) if s.path[-1] == key]
    if elsewhere:
        home = f"under {elsewhere[0]!r}" if elsewhere[0] else "at the top of the file"
        return f"unknown key here; it belongs {home}"
    return "unknown key; known: " + ", ".join(names)


def _resolve(root: type[Settings], place: Place) -> tuple[FieldInfo | None, Any]:
    """Return the field at a place and its type; a dictionary's value has a type but no field."""
    field: FieldInfo | None = None
    annotation: Any = root
    for part in place:
        annotation = _without_none(annotation)
        if _is_settings(annotation):
            field = next(
                (f for n, f in annotation.model_fields.items() if part in (n, f.alias)), None
            )
            annotation = field.annotation if field else Any
        else:
            field, annotation = None, (get_args(annotation) or (Any,))[-1]
    return field, annotation


def _section(annotation: Any) -> type[Settings] | None:
    """Return the settings class in `S`, `S | None`, `dict[str, S]` or `list[S]`."""
    annotation = _without_none(annotation)
    if get_origin(annotation) in (dict, list):
        annotation = get_args(annotation)[-1]
    return annotation if _is_settings(annotation) else None


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return next(arg for arg in get_args(annotation) if arg is not type(None))
    return annotation


def _is_settings(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Settings)


def _bound(field: FieldInfo, name: str) -> Any:
    return next((v for m in field.metadata if (v := getattr(m, name, None)) is not None), None)


def _key_words(root: type[Settings], place: Place) -> str:
    """Return what the keys of a dictionary may be, from the description of their type."""
    _, annotation = _resolve(root, place)
    metadata = getattr(get_args(annotation)[0], "__metadata__", ())
    return next((m.description for m in metadata if isinstance(m, FieldInfo)), None) or "another"


def _first_sentence(field: FieldInfo | None) -> str:
    text = " ".join((field.description or "a value").split()) if field else "a value"
    sentence = text.partition(". ")[0].rstrip(".").partition("; default")[0]
    return sentence[0].lower() + sentence[1:]


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    # As the file spells it: `true`, a date; quotes show that text is text.
    text = str(value).lower() if isinstance(value, bool) else str(value)
    text = repr(value) if isinstance(value, str) else text
    return text if len(text) <= 60 else text[:57] + "..."
