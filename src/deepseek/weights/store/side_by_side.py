"""Maps runs of files side by side into one stretch of memory, without a copy.

Python's `mmap` cannot say at which address; the C library's can. A stretch is reserved by Python,
which gives it back when the last view of it is gone, and runs are mapped over it. Mappings are
private: who writes to one gets pages of its own, the file is never changed.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass

from deepseek.weights.store.cutting import HUGE_PAGE_BYTES

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
"""Pages that nobody writes need no memory of their own, so none is set aside for them."""
_PROTECTION = mmap.PROT_READ | mmap.PROT_WRITE  # torch takes no memory that it may not write to
_MADV_HUGEPAGE = 14
_MADV_POPULATE_READ = 22  # Linux 5.14

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
    ctypes.c_int64,
)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


@dataclass(slots=True, kw_only=True)
class Run:
    """Bytes of a file and where they are to stand; both positions are pages' beginnings."""

    at: int
    file: int
    start: int
    num_bytes: int


def map_side_by_side(runs: Sequence[Run], *, num_bytes: int) -> memoryview:
    """Return a stretch of memory with the runs in it, zeros elsewhere; raises `OSError`.

    The files may be closed afterwards. They must be long enough: touching memory behind a file's
    end kills the process.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    reserved = mmap.mmap(-1, num_bytes + HUGE_PAGE_BYTES, flags=flags, prot=_PROTECTION)
    longest = max(runs, key=lambda run: run.num_bytes, default=None)
    shift = 0
    if longest is not None:
        address = _address(memoryview(reserved)) + longest.at
        shift = (longest.start - address) % HUGE_PAGE_BYTES
    memory = memoryview(reserved)[shift : shift + num_bytes]
    for run in runs:
        _map_over(memory, run)
    # The page cache then reads a file by huge pages, where the file system has them: the disk gets
    # few large requests, and what has come is mapped with one entry for 512 pages. A system that
    # does not know huge pages refuses, and reads as it always does.
    if num_bytes:
        _libc.madvise(_address(memory), num_bytes, mmap.MADV_HUGEPAGE)
    return memory


def populate(memory: memoryview, start: int, num_bytes: int) -> None:
    """Read a part, which begins at a page, into memory and map it: one call, not a fault a page.

    Does nothing on a system that cannot: the part is then read when it is touched. Raises `OSError`
    where the disk cannot read it, which who touches it would not survive.
    """
    if not num_bytes or not _libc.madvise(_address(memory) + start, num_bytes, _MADV_POPULATE_READ):
        return
    number = ctypes.get_errno()
    if number == errno.EFAULT:  # its word for the bus error that it has kept from us
        raise OSError(errno.EIO, "the disk cannot read all of a pack")
    if number != errno.EINVAL:
        raise OSError(number, f"cannot read {num_bytes} bytes of a pack: {os.strerror(number)}")


def prefer_huge_pages(memory: memoryview) -> None:
    """Ask for huge pages where this is read from the disk: decoding is slower in small ones.

    What the page cache holds is mapped as it is. Does nothing on a system without huge pages.
    """
    _libc.madvise(_address(memory), len(memory), _MADV_HUGEPAGE)


def _map_over(memory: memoryview, run: Run) -> None:
    wanted = _address(memory) + run.at
    flags = mmap.MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE
    got = _libc.mmap(wanted, run.num_bytes, _PROTECTION, flags, run.file, run.start)
    if got != wanted:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot map {run.num_bytes} bytes: {os.strerror(number)}")


def _address(memory: memoryview) -> int:
    """Return where memory begins; good as long as it lives."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
