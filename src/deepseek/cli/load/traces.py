"""Reads recorded arrivals: when a request came, how long its prompt and its answer were.

Two public formats: Azure's CSV (`TIMESTAMP,ContextTokens,GeneratedTokens`) and Mooncake's JSON
lines (`timestamp` in ms, `input_length`, `output_length`, `hash_ids` of 512-token prefix blocks).
"""

import csv
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import msgspec

from deepseek.core.errors import ConfigurationError

BLOCK_TOKENS = 512
"""Tokens of one Mooncake prefix block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One recorded request."""

    arrival_s: float
    """Seconds after the first row."""
    input_tokens: int
    output_tokens: int
    prefix_blocks: tuple[int, ...] = ()
    """Equal leading ids mean equal leading text."""


class _MooncakeRow(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int] = []


def read_trace(path: Path, *, max_rows: int | None = None) -> list[TraceRow]:
    """Return the first rows in order of arrival; raises `ConfigurationError` naming the line."""
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = list(itertools.islice(_parse(path, lines), max_rows))
    except OSError as error:
        raise ConfigurationError(f"--trace: {path}: {error.strerror}", param="trace") from None
    except UnicodeDecodeError:
        raise _fault(path, 1, "is not UTF-8 text") from None
    if not rows:
        raise _fault(path, 1, "holds no requests")
    rows.sort(key=lambda row: row.arrival_s)
    first = rows[0].arrival_s
    return [replace(row, arrival_s=row.arrival_s - first) for row in rows]


def scale_trace(
    rows: Iterable[TraceRow],
    *,
    speed: float = 1.0,
    max_input_tokens: int | None = None,
    max_output_tokens: int | None = None,
) -> list[TraceRow]:
    """Return the rows fitted to a smaller machine.

    Arrivals come `speed` times as fast. Lengths are multiplied so that the longest becomes the
    given maximum: their distribution keeps its shape, as clipping would not. They never grow.
    """
    rows = list(rows)
    input_scale = _scale([row.input_tokens for row in rows], max_input_tokens)
    output_scale = _scale([row.output_tokens for row in rows], max_output_tokens)
    return [
        replace(
            row,
            arrival_s=row.arrival_s / speed,
            input_tokens=max(1, round(row.input_tokens * input_scale)),
            output_tokens=max(1, round(row.output_tokens * output_scale)),
        )
        for row in rows
    ]


def _scale(lengths: list[int], maximum: int | None) -> float:
    longest = max(lengths)
    return 1.0 if maximum is None or longest <= maximum else maximum / longest


def _parse(path: Path, lines: Iterable[str]) -> Iterator[TraceRow]:
    numbered = enumerate(lines, start=1)
    first = next(numbered, (1, ""))
    if first[1].startswith("{"):
        yield from _parse_mooncake(path, itertools.chain([first], numbered))
    else:
        yield from _parse_azure(path, itertools.chain([first], numbered))


def _parse_mooncake(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[TraceRow]:
    decoder = msgspec.json.Decoder(_MooncakeRow)
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise _fault(path, number, f"is not a Mooncake row: {error}") from None
        yield TraceRow(
            arrival_s=row.timestamp / 1000,
            input_tokens=row.input_length,
            output_tokens=row.output_length,
            prefix_blocks=tuple(row.hash_ids),
        )


def _parse_azure(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[TraceRow]:
    rows = csv.DictReader(line for _, line in lines)
    for number, row in enumerate(rows, start=2):
        try:
            yield TraceRow(
                arrival_s=datetime.fromisoformat(row["TIMESTAMP"]).timestamp(),
                input_tokens=int(row["ContextTokens"]),
                output_tokens=int(row["GeneratedTokens"]),
            )
        except KeyError as error:
            raise _fault(
                path, 1, f"has no column {error}; give an Azure CSV or a Mooncake JSONL file"
            ) from None
        except (ValueError, TypeError) as error:
            raise _fault(path, number, f"is not an Azure row: {error}") from None


def _fault(path: Path, line: int, message: str) -> ConfigurationError:
    return ConfigurationError(f"--trace: {path}:{line}: {message}", param="trace")
