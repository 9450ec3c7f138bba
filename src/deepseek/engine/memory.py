"""How much memory this process holds, and how it gives some back."""

import ctypes
import resource
import sys
from pathlib import Path

_STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Return the resident set size; its high-water mark where the system tells no more (macOS)."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def give_back_memory() -> None:
    """Return freed memory to the system, where the C library would keep it for later (glibc).

    Large tensors are mappings of their own and go at once; the small ones of many layers leave the
    heap full of holes, which only this returns.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none, and keeps nothing
        if trim is not None:
            trim(0)
