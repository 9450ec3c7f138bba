"""Runs a program for its output lines, and makes sure that it never outlives its caller."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import deepseek
from deepseek.weights.storage import tells_of_full_storage


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildResult:
    """How a program ended."""

    returncode: int
    error_lines: tuple[str, ...]
    """What it wrote to standard error."""

    @property
    def is_storage_full(self) -> bool:
        """Whether it ended because a file system had no room.

        Known by the text: it comes from pip, Rust and Python alike, each with its own exceptions.
        """
        return self.returncode != 0 and tells_of_full_storage("\n".join(self.error_lines))


def run_for_lines(
    command: Sequence[str], on_line: Callable[[str], None], *, environment: Mapping[str, str]
) -> ChildResult:
    """Run `command`, pass on each line of its standard output, and return how it ended.

    The child sees this process's environment with `environment` on top. It is killed where
    `on_line` raises or the caller is interrupted.
    """
    # A file instead of a second pipe: nobody has to read both at once.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with subprocess.Popen(  # noqa: S603 - our own modules and pip, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            env={**os.environ, **environment},
        ) as process:
            assert process.stdout is not None  # noqa: S101 - a pipe was asked for
            try:
                for line in process.stdout:
                    on_line(line.rstrip("\n"))
                process.wait()
            finally:
                process.kill()  # nothing where it has ended; else leaving `with` would wait for it
        errors.seek(0)
        lines = tuple(line for line in errors.read().splitlines() if line.strip())
    return ChildResult(returncode=process.returncode, error_lines=lines)


def environment_of_own_modules() -> dict[str, str]:
    """Return the variables with which `python -m deepseek...` runs this very package.

    The package may be imported from a checkout that is not installed.
    """
    root = str(Path(deepseek.__file__).parents[1])
    return {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
