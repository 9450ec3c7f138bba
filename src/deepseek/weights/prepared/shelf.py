"""The directory of prepared weights: a file per model and way of preparing, within a budget.

A file is complete or absent: it is written under another name, brought to the disk, then renamed.
Several processes may use one shelf. Who has a file mapped keeps it when its name is removed.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from deepseek.core.errors import CorruptWeights
from deepseek.weights import storage
from deepseek.weights.prepared.prepared_file import (
    Origin,
    PreparedFile,
    StoredTensor,
    open_prepared,
    size_of,
    write_prepared,
)

_SUFFIX = ".safetensors"
_PARTIAL = ".partial"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShelfEntry:
    """A file of the shelf, whatever is in it."""

    key: str
    path: Path
    num_bytes: int
    used_s: float
    """When it was used last, in seconds since the epoch."""


class PreparedShelf:
    """The files below `root`; its methods raise errors of `core.errors`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, key: str) -> PreparedFile | None:
        """Return a file that may be mapped, and note that it was used; None where there is none.

        Raises `CorruptWeights` for one that is damaged, and removes it.
        """
        path = self._path(key)
        if not path.exists():
            return None
        try:
            found = open_prepared(path, key)
        except CorruptWeights:
            self.remove(key)
            raise
        with suppress(OSError):  # on a read-only file system the order of use stays as it is
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        return found

    def add(
        self,
        key: str,
        tensors: Mapping[str, StoredTensor],
        *,
        origin: Origin,
        about: str,
        budget_bytes: int,
        is_wanted: Callable[[], bool],
    ) -> bool:
        """Write a file; others make room for it, the least recently used first.

        Returns False where it would be larger than the budget, and where another process writes
        the same one. Raises `WritingStopped` where it `is_wanted` no more, `StorageFull` and
        `ConfigurationError`; nothing of it is left then.
        """
        needed_bytes = size_of(tensors)
        if needed_bytes > budget_bytes:
            return False
        purpose = "prepared weights"
        with storage.explaining_storage_faults(self.root, needed_bytes, purpose=purpose):
            self.root.mkdir(parents=True, exist_ok=True)
            with self._partial(key) as file:
                if file is None:
                    return False
                self._make_room(needed_bytes, budget_bytes)
                storage.require_room(self.root, needed_bytes, purpose=purpose)
                write_prepared(
                    file, tensors, key=key, origin=origin, about=about, is_wanted=is_wanted
                )
                self._partial_path(key).rename(self._path(key))
            _sync_directory(self.root)
        return True

    def remove(self, key: str) -> None:
        """Remove a file where that is possible; whoever has it mapped keeps it."""
        with suppress(OSError):
            self._path(key).unlink()

    def entries(self) -> list[ShelfEntry]:
        """Return the files, the least recently used first."""
        found = [
            ShelfEntry(
                key=path.stem, path=path, num_bytes=state.st_size, used_s=state.st_atime_ns / 1e9
            )
            for path, state in self._states(_SUFFIX)
        ]
        return sorted(found, key=lambda entry: entry.used_s)

    def remove_leftovers(self) -> int:
        """Remove what killed processes have left half written; return how many bytes that were."""
        freed = 0
        for path, state in self._states(_PARTIAL):
            with self._partial(path.stem) as file:
                if file is not None:
                    freed += state.st_size
        return freed

    def _make_room(self, needed_bytes: int, budget_bytes: int) -> None:
        entries = self.entries()
        total = sum(entry.num_bytes for entry in entries)
        for entry in entries:
            if total + needed_bytes <= budget_bytes:
                return
            self.remove(entry.key)
            total -= entry.num_bytes

    @contextmanager
    def _partial(self, key: str) -> Iterator[int | None]:
        """Hold a file under its preliminary name, empty; None where another process does.

        What still has that name afterwards is removed.
        """
        path = self._partial_path(key)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if not _locked(file, path):
                yield None
                return
            os.ftruncate(file, 0)
            try:
                yield file
            finally:
                if _is_at(file, path):  # else it has its name now
                    path.unlink()
        finally:
            os.close(file)

    def _states(self, suffix: str) -> Iterator[tuple[Path, os.stat_result]]:
        if not self.root.is_dir():
            return
        for path in sorted(self.root.glob(f"*{suffix}")):
            with suppress(FileNotFoundError):  # another process has removed it meanwhile
                yield path, path.stat()

    def _path(self, key: str) -> Path:
        return self.root / f"{key}{_SUFFIX}"

    def _partial_path(self, key: str) -> Path:
        return self.root / f"{key}{_PARTIAL}"


def _locked(file: int, path: Path) -> bool:
    """Lock a file that was opened by its path; False where another holds it.

    Between opening and locking the other may have finished and renamed it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return _is_at(file, path)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
