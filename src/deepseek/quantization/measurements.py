"""What a search has measured, kept in a file so that a killed search goes on where it ended.

The file belongs to one model, config and data: others begin anew. It is written after every
measurement, as a whole and by renaming, so that it is complete whenever the search is killed.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from deepseek.core.errors import ConfigurationError
from deepseek.quantization.fidelity import Fidelity


class Measurements:
    """Fidelity by the name of what was measured."""

    def __init__(self, file: Path | None = None, *, fingerprint: str = "") -> None:
        """Read what `file` holds for this fingerprint; without a file nothing is kept."""
        self._file = file
        self._fingerprint = fingerprint
        self._known: dict[str, Fidelity] = {}
        if file is not None and file.exists():
            self._read(file)

    def get(self, name: str, measure: Callable[[], Fidelity]) -> Fidelity:
        """Return what is known under the name, else measure it and keep it."""
        if name not in self._known:
            self._known[name] = measure()
            if self._file is not None:
                self._write(self._file)
        return self._known[name]

    def _read(self, file: Path) -> None:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["fingerprint"] == self._fingerprint:
                self._known = {name: Fidelity(**found) for name, found in content["known"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"{file} is not the state of a search ({error}); remove it, or name another file",
                param="state_file",
            ) from error

    def _write(self, file: Path) -> None:
        known = {name: asdict(found) for name, found in self._known.items()}
        work = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            work.write_text(json.dumps({"fingerprint": self._fingerprint, "known": known}))
            work.replace(file)
        except OSError as error:
            raise ConfigurationError(
                f"the state of the search cannot be written to {file} ({error.strerror}); name "
                "another file",
                param="state_file",
            ) from error
