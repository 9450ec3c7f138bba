"""Reads the small files in which Linux tells of itself; one that is not there tells nothing.

A file may be missing, forbidden or, for a sensor that sleeps, refuse to be read: all of that is
the same to a sensor, the value is unknown.
"""

import re
from collections.abc import Iterable
from pathlib import Path

_NUMBER = re.compile(r"-?\d+")


def read_text(path: Path) -> str | None:
    """Return the content without its last newline, or None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").rstrip("\n")
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """Return the number that the file holds, or None where it holds none (`max`)."""
    text = read_text(path)
    return int(text) if text is not None and _NUMBER.fullmatch(text) else None


def read_table(path: Path) -> dict[str, int]:
    """Return lines of `name value` or `name: value kB`, units dropped; empty where unreadable."""
    rows = (line.split() for line in (read_text(path) or "").splitlines())
    return {
        row[0].rstrip(":"): int(row[1])
        for row in rows
        if len(row) > 1 and _NUMBER.fullmatch(row[1])
    }


def known(values: Iterable[int | None]) -> list[int]:
    """Return the values that could be read."""
    return [value for value in values if value is not None]
