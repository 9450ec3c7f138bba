"""The base of every settings class, and the units that settings are written in.

A settings class belongs to the room that reads it (`<room>/settings.py`);
`deepseek.deployment_file` composes them into the one YAML file.
"""

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic.alias_generators import to_camel

_SIZE = re.compile(r"^\s*(\d{1,18}(?:\.\d{1,18})?)\s*([KMGT]i?)?B?\s*$", re.IGNORECASE)
_DURATION = re.compile(r"^\s*(\d{1,18}(?:\.\d{1,18})?)\s*(ms|s|m|h)\s*$")
_SIZE_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
                 "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}  # fmt: skip
_PERCENT = re.compile(r"^\s*(\d{1,18}(?:\.\d{1,18})?)\s*%\s*$")
_DURATION_FACTORS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Settings(BaseModel):
    """Frozen settings: unknown keys are errors, `maxWaitTime` and `max_wait_time` are one field."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )


def _parse_size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = _SIZE.match(value)
    if match is None:
        raise ValueError("is not a size; write bytes or a number with KiB, MiB, GiB (e.g. 2GiB)")
    return int(float(match[1]) * _SIZE_FACTORS[(match[2] or "").lower()])


def _parse_duration(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = _DURATION.match(value)
    if match is None:
        raise ValueError("is not a duration; write seconds or a number with ms, s, m, h (e.g. 30s)")
    return float(match[1]) * _DURATION_FACTORS[match[2]]


def _parse_part(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = _PERCENT.match(value)
    if match is None:
        raise ValueError('is not a part of a whole; write a number (0.9) or a percentage ("90%")')
    return float(match[1]) / 100


SizeBytes = Annotated[int, BeforeValidator(_parse_size, json_schema_input_type=int | str)]
"""Bytes, as a number or as `512MiB`."""

OptionalSizeBytes = Annotated[
    int | None, BeforeValidator(_parse_size, json_schema_input_type=int | str | None)
]
"""The same where None is the default."""

DurationSeconds = Annotated[
    float, BeforeValidator(_parse_duration, json_schema_input_type=float | str)
]
"""Seconds, as a number or as `200ms`."""

OptionalDurationSeconds = Annotated[
    float | None, BeforeValidator(_parse_duration, json_schema_input_type=float | str | None)
]
"""The same where None is the default."""

PartOfWhole = Annotated[float, BeforeValidator(_parse_part, json_schema_input_type=float | str)]
"""A part of something, as a number from 0 to 1 or as `90%`."""
