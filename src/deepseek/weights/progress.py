"""How long work on models reports that it moves: stages with an optional total.

A conversion runs in a process of its own and writes the same calls as JSON lines to its standard
output; `deepseek.weights.conversion` replays them.
"""

import json
from typing import Literal, Protocol, TextIO

Unit = Literal["bytes", "steps"]


class Progress(Protocol):
    """Receives the stages of one piece of work; calls are cheap and never raise."""

    def stage(self, name: str, *, total: int | None = None, unit: Unit = "steps") -> None:
        """Begin a stage, which ends the one before; without a total its length is unknown."""
        ...

    def advance(self, amount: int = 1) -> None:
        """Count `amount` units of the current stage as done."""
        ...


class SilentProgress:
    """Reports to nobody."""

    def stage(self, name: str, *, total: int | None = None, unit: Unit = "steps") -> None: ...

    def advance(self, amount: int = 1) -> None: ...


class JsonLinesProgress:
    """Writes each call as one JSON line.

    When the reader is gone the write raises `BrokenPipeError`: a conversion whose parent was
    killed ends at its next report instead of working on for nobody.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def stage(self, name: str, *, total: int | None = None, unit: Unit = "steps") -> None:
        self._write({"stage": name, "total": total, "unit": unit})

    def advance(self, amount: int = 1) -> None:
        self._write({"advance": amount})

    def fail(self, code: str, message: str) -> None:
        """Report the error (a code of `core.errors`) that ends the conversion."""
        self._write({"error": code, "message": message})

    def _write(self, event: dict[str, object]) -> None:
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()
