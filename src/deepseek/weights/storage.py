"""Room on the model cache's file system: asked before work, and explained when it runs out."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepseek.core.errors import ConfigurationError, StorageFull

_FULL = (errno.ENOSPC, errno.EDQUOT)


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
def explaining_full_storage(directory: Path, needed_bytes: int, *, purpose: str) -> Iterator[None]:
    """Turn the file system's own "no space left" and "not permitted" into our errors."""
    try:
        yield
    except PermissionError as error:
        raise ConfigurationError(
            f"{error.filename or directory} is not writable; set DEEPSEEK_HOME to a directory "
            "that is"
        ) from error
    except OSError as error:
        if error.errno == errno.EROFS:
            raise ConfigurationError(
                f"{directory} is on a read-only file system; set DEEPSEEK_HOME to another one"
            ) from error
        if error.errno not in _FULL:
            raise
        raise storage_full(directory, needed_bytes, purpose=purpose) from error


def tree_bytes(directory: Path) -> int:
    """Return the size of a directory's files; links count as what they point to."""
    files = (Path(root) / name for root, _, names in os.walk(directory) for name in names)
    return sum(file.stat().st_size for file in files if file.exists())


def in_mib(num_bytes: int) -> str:
    """Return a size for a message, e.g. `257 MiB`."""
    return f"{num_bytes / 2**20:,.0f} MiB"
