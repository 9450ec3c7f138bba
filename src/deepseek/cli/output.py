"""Files that commands write where the user says."""

from pathlib import Path

from deepseek.core.errors import ConfigurationError


def write_text(path: Path, text: str) -> None:
    """Write the file; raises `ConfigurationError` with the system's reason."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror}") from None
