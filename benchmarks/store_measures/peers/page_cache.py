"""Which pages of files are in the system's page cache, and how to change that.

Imported by the loaders' processes, in whatever environment they run: the standard library alone.
"""

import ctypes
import mmap
import os
from collections.abc import Sequence

_libc = ctypes.CDLL(None, use_errno=True)
_BLOCK_BYTES = 8 << 20


def drop(files: Sequence[str]) -> None:
    """Take files out of the page cache; `posix_fadvise` does it per file, without privileges."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)  # what is not written yet would stay
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def fill(files: Sequence[str]) -> None:
    """Read files into the page cache."""
    buffer = bytearray(_BLOCK_BYTES)
    for file in files:
        with open(file, "rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def take_memory(num_bytes: int) -> None:
    """Touch so much memory and give it back.

    A virtual machine's host takes back memory that is free, and returning it costs 0.5 to 2 s a GB,
    more than any loader takes to fill it: who finds it there already wins. After this all do.
    """
    populate_write = 23  # MADV_POPULATE_WRITE, Linux 5.14
    with mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory.madvise(populate_write)


def resident_fraction(files: Sequence[str]) -> float:
    """Return which part of the files' pages is in the page cache, as `mincore` says."""
    resident = pages = 0
    for file in files:
        num_bytes = os.path.getsize(file)
        if not num_bytes:
            continue
        with open(file, "rb") as opened:
            mapping = mmap.mmap(
                opened.fileno(), num_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | 2
            )
        num_pages = -(-num_bytes // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * num_pages)()
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        if _libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(num_bytes), found):
            raise OSError(ctypes.get_errno(), "mincore")
        resident += sum(page & 1 for page in found)
        pages += num_pages
        mapping.close()
    return resident / max(pages, 1)
