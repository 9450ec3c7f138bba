"""Pack files: chunks one after another, each from a page's beginning, never changed once written.

A chunk stands where its position and that in its model's memory agree modulo a huge page, so that
huge pages can be mapped. What is skipped for it is a hole in the file and takes no room.

Because nothing is ever overwritten, a mapping of a pack stays true as long as it lives, also when
the pack is compacted away under its reader.
"""

import fcntl
import os
from pathlib import Path
from typing import Self

from deepseek.weights.store.cutting import HUGE_PAGE_BYTES, PAGE_BYTES, aligned
from deepseek.weights.store.index import Index, Location

PACK_BYTES = 1 << 30
"""A pack of this size is full: what compaction copies at once stays small."""


def pack_path(root: Path, number: int) -> Path:
    """Return a pack's file."""
    return root / "packs" / f"{number:06d}.pack"


class PackWriter:
    """Appends to one pack at a time, which it holds locked: each importer has its own.

    What lies after the last chunk that the index knows was left by a killed importer and is
    written over. `continues` says whether packs that others began are filled up first.
    """

    def __init__(
        self, root: Path, index: Index, *, pack_bytes: int = PACK_BYTES, continues: bool = True
    ) -> None:
        self._root = root
        self._index = index
        self._pack_bytes = pack_bytes
        self._continues = continues
        self._file: int | None = None
        self._number = 0
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def append(self, data: memoryview, *, in_step_with: int) -> Location:
        """Write a chunk and say where: safe once it was flushed and the index has it.

        The place is the next that equals `in_step_with`, a page's beginning, modulo a huge page.
        """
        if self._file is None:
            self._file = self._open()
        end = aligned(self._end, PAGE_BYTES)
        start = end + (in_step_with - end) % HUGE_PAGE_BYTES
        write_fully(self._file, data, start)
        self._end = start + len(data)
        return Location(pack=self._number, start=start, num_bytes=len(data))

    def flush(self) -> None:
        """Wait until everything appended is on disk."""
        if self._file is not None:
            os.fdatasync(self._file)

    def let_go_if_full(self) -> None:
        """Go on with another pack if this one is full; the index has all that was appended.

        Not earlier: whoever locks a pack writes over what the index does not know.
        """
        if self._end >= self._pack_bytes:
            self._close()

    def _open(self) -> int:
        """Return the last unfilled pack that nobody writes to, else a new one."""
        packs = self._index.packs() if self._continues else {}
        for number in reversed([n for n, end in packs.items() if end < self._pack_bytes]):
            file = self._locked(number, create=False)
            if file is None:
                continue
            # Asked again: another importer may have filled it before it let go of the lock.
            end = self._index.packs()[number]
            if end < self._pack_bytes:
                self._number, self._end = number, end
                return file
            os.close(file)
        file = None
        while file is None:  # another importer may take a new pack before it is locked here
            number = self._index.new_pack()
            file = self._locked(number, create=True)
        sync_directory(self._root / "packs")
        self._number, self._end = number, 0
        return file

    def _locked(self, number: int, *, create: bool) -> int | None:
        try:
            flags = os.O_RDWR | (os.O_CREAT if create else 0)
            file = os.open(pack_path(self._root, number), flags, 0o666)
        except FileNotFoundError:
            return None  # its creator was killed before it made the file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        return file

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def write_fully(file: int, data: memoryview, start: int) -> None:
    """Write all of `data` at `start`; a call may write less than it was given."""
    while data:
        written = os.pwrite(file, data, start)
        data, start = data[written:], start + written


def read_fully(file: int, into: memoryview, start: int) -> bool:
    """Fill `into` from `start`; False where the file ends before."""
    while into:
        num_bytes = os.preadv(file, [into], start)
        if num_bytes == 0:
            return False
        into, start = into[num_bytes:], start + num_bytes
    return True


def sync_directory(path: Path) -> None:
    """Make a new name in a directory outlive a power failure."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
