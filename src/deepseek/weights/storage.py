"""Room on the model cache's file system: asked before work, and explained when it runs out."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepseek.core.errors import ConfigurationError, StorageFull

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = ("No space left on device", "os error 28", "Disk quota exceeded", "os error 122")


def free_bytes(directory: Path) -> int:
    """Return what is free where `directory` is or will be."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free


def require_room(directory: Path, needed_bytes: int, *, purpose: str) -> None:
    """Raise `StorageFull` where less than `needed_bytes` is free."""
    if free_bytes(directory) < needed_bytes:
        raise storage_full(directory, needed_bytes, purpose=purpose)


def storage_full(directory: Path, needed_bytes: int, *, purpose: str) -> StorageFull:
    """Return the error that says what was needed, what is free, and what to do."""
    return StorageFull(
        f"no room for {purpose}: it needs about {in_mib(needed_bytes)}, {directory} has "
        f"{in_mib(free_bytes(directory))} free. Free some space, or set DEEPSEEK_HOME to a "
        "directory on a larger file system"
    )


@contextmanager
def explaining_storage_faults(
    directory: Path, needed_bytes: int, *, purpose: str
) -> Iterator[None]:
    """Turn what the file system says of a write to `directory` into our errors."""
    try:
        yield
    except OSError as error:
        # shutil.Error has no errno, only the texts of what went wrong.
        if error.errno in _FULL or tells_of_full_storage(str(error)):
            raise storage_full(directory, needed_bytes, purpose=purpose) from error
        raise ConfigurationError(
            f"{purpose} cannot be kept in {directory}: {error}. Make it a directory that can be "
            "written to, or set DEEPSEEK_HOME to another one"
        ) from error


def tells_of_full_storage(text: str) -> bool:
    """Say whether an error message, whoever wrote it, is about a full file system."""
    return any(part in text for part in _FULL_TEXTS)


def tree_bytes(directory: Path) -> int:
    """Return the size of a directory's files; links count as what they point to."""
    files = (Path(root) / name for root, _, names in os.walk(directory) for name in names)
    return sum(file.stat().st_size for file in files if file.exists())


def in_mib(num_bytes: int) -> str:
    """Return a size for a message, e.g. `257 MiB`."""
    return f"{num_bytes / 2**20:,.0f} MiB"
