"""Reading the JSON files of a model directory, with errors that name file and remedy."""

import json
from pathlib import Path
from typing import Any

from deepseek.core.errors import ModelSourceError


def read_json(file: Path) -> Any:
    """Return the file's value; `ModelSourceError` where it is missing or not JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelSourceError(f"{file} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ModelSourceError(f"{file} is not valid JSON ({error}); fetch it again") from error


def read_object(file: Path) -> dict[str, Any]:
    """Return the file's object, as `read_json`."""
    value = read_json(file)
    if not isinstance(value, dict):
        raise ModelSourceError(f"{file} is not a JSON object; fetch it again")
    return value


def read_object_if_present(file: Path) -> dict[str, Any]:
    """Return the file's object, empty where there is no file."""
    return read_object(file) if file.exists() else {}
