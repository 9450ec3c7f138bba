"""The two spellings of a setting, `snake_case` and `camelCase`, in a file as it was written."""

from collections.abc import Mapping
from typing import Any

from pydantic.alias_generators import to_camel


def value_of(section: Any, field: str) -> Any:
    """Return what a section gives a field, under either spelling; None where it gives nothing."""
    if not isinstance(section, Mapping):
        return None
    return section.get(field, section.get(to_camel(field)))


def spelling_of(section: Any, field: str) -> str:
    """Return the key under which the file has a field; where it has none, its own name."""
    camel = to_camel(field)
    return camel if isinstance(section, Mapping) and camel in section else field
