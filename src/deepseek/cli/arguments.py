"""Types of arguments that several commands share; each refuses a bad value with its remedy."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the annotation only: `argparse` keeps the class private
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Subparsers = object

DEFAULT_URL = "http://127.0.0.1:8000"


def port_number(text: str) -> int:
    """Parse a TCP port."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a number from 0 to 65535")
    return int(text)


def positive_int(text: str) -> int:
    """Parse a whole number of at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def positive_float(text: str) -> float:
    """Parse a finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def non_negative_float(text: str) -> float:
    """Parse a finite number of at least zero."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def duration(text: str) -> float:
    """Parse seconds as the deployment file spells them: `200ms`, `1s`, `0.5`."""
    # Deferred: pydantic takes a tenth of a second, and most commands do without.
    from pydantic import TypeAdapter, ValidationError

    from deepseek.core.settings import DurationSeconds

    try:
        return non_negative_float(text)
    except argparse.ArgumentTypeError:
        pass
    try:
        seconds: float = TypeAdapter(DurationSeconds).validate_python(text)
    except ValidationError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a duration; give a number with ms, s, m or h, such as 200ms"
        ) from None
    return seconds


def add_file_argument(parser: argparse.ArgumentParser, *, default: str) -> None:
    """Add `-f FILE`, the deployment file."""
    parser.add_argument(
        "-f", "--file", metavar="FILE", help=f"deployment file (default: {default})"
    )


def add_url_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--url`, the running server to talk to."""
    parser.add_argument(
        "--url", default=DEFAULT_URL, help=f"the running server (default: {DEFAULT_URL})"
    )
