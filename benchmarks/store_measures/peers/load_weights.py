"""A process that loads weights again and again with one loader, when it is told to.

    python load_weights.py LOADER

Each line of standard input is a JSON object: `path` (a safetensors file, or a model directory of a
chunk store), `files` (what is on disk), `is_cold`. The answer is a JSON line: `seconds` from the
call until every byte of every tensor has been read into memory, `resident`: how much of the files
was in the page cache before, `check`: the sum of what was touched, the same for all loaders.
Imports are not counted: a worker has them behind it.
"""

import ctypes
import gc
import json
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch
from page_cache import drop, fill, resident_fraction, take_memory

PAGE_BYTES = 4096
DIRECT_BYTES, DIRECT_READERS = 4 << 20, 4
"""The best of those tried from 1 to 16 MiB and 1 to 32 readers."""
Tensors = Iterable[torch.Tensor]
Loader = Callable[[str, ExitStack], Tensors]


def ours(*, is_first: bool) -> Loader:
    """Chunks of the store, mapped, with the default setting: each is checked once a process."""
    from deepseek.engine.models.tensor_source import ChunkSource
    from deepseek.weights.store import reader as readers

    def load(path: str, stack: ExitStack) -> Tensors:
        if is_first:
            readers._checked.clear()  # as in a new process
        source = ChunkSource(readers.open_model(Path(path)))
        return [source.tensor(name) for name in source.order]

    return load


def safe_open(path: str, stack: ExitStack) -> Tensors:
    """safetensors, one tensor after the other."""
    import safetensors

    opened = stack.enter_context(safetensors.safe_open(path, framework="pt"))
    return [opened.get_tensor(name) for name in opened.keys()]  # noqa: SIM118 - it is no mapping


def load_file(backend: str) -> Loader:
    """safetensors, the whole file."""
    from safetensors.torch import load_file

    return lambda path, stack: load_file(path, backend=backend).values()


def runai(path: str, stack: ExitStack) -> Tensors:
    """Run:ai Model Streamer into memory of the CPU."""
    from runai_model_streamer import SafetensorsStreamer

    streamer = stack.enter_context(SafetensorsStreamer())
    streamer.stream_file(path)
    return [tensor for _, tensor in streamer.get_tensors()]


def fastsafetensors(path: str, stack: ExitStack) -> Tensors:
    """fastsafetensors into memory of the CPU."""
    from fastsafetensors import fastsafe_open

    opened = stack.enter_context(fastsafe_open([path], nogds=True, device="cpu"))
    return [opened.get_tensor(name) for name in opened.keys()]  # noqa: SIM118 - it is no mapping


def disk() -> Loader:
    """No loader: what the disk gives past the page cache, into memory that is used again.

    All packs are read, and thrown away: it tells what may be expected of the disk in this run.
    """
    memory = mmap.mmap(-1, (DIRECT_READERS + 1) * DIRECT_BYTES)
    memory.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(memory)
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    begin = -address % DIRECT_BYTES  # a huge page's beginning: the disk writes into whole ones
    buffers = [view[begin + i * DIRECT_BYTES :][:DIRECT_BYTES] for i in range(DIRECT_READERS)]
    for buffer in buffers:
        buffer[:] = bytes(DIRECT_BYTES)

    def load(path: str, stack: ExitStack) -> Tensors:
        blocks: SimpleQueue[tuple[int, int]] = SimpleQueue()
        for file in sorted(Path(path).parent.glob("chunks/packs/*.pack")):
            descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
            stack.callback(os.close, descriptor)
            for start in range(0, file.stat().st_size, DIRECT_BYTES):
                blocks.put((descriptor, start))

        def read(buffer: memoryview) -> None:
            with suppress(Empty):
                while True:
                    descriptor, start = blocks.get_nowait()
                    os.preadv(descriptor, [buffer], start)

        with ThreadPoolExecutor(DIRECT_READERS) as readers:
            list(readers.map(read, buffers))
        return []

    return load


LOADERS: dict[str, Callable[[], Loader]] = {
    "ours": lambda: ours(is_first=True),
    "ours-again": lambda: ours(is_first=False),
    "safe_open": lambda: safe_open,
    "load_file": lambda: load_file("mmap"),
    "load_file-pread": lambda: load_file("pread"),
    "runai": lambda: runai,
    "fastsafetensors": lambda: fastsafetensors,
    "disk": disk,
}


def touched(tensors: Tensors) -> int:
    """Read a byte of every page of every tensor; returns their sum."""
    total = 0
    for tensor in tensors:
        flat = tensor.reshape(-1).view(torch.uint8)
        total += int(flat[::PAGE_BYTES].sum()) + int(flat[-1])
    return total


def main() -> None:
    """Answer one line after the other."""
    load = LOADERS[sys.argv[1]]()
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        (drop if order["is_cold"] else fill)(order["files"])
        take_memory(sum(os.path.getsize(file) for file in order["files"]) * 5 // 4)
        resident = resident_fraction(order["files"])
        with ExitStack() as stack:
            start_s = time.perf_counter()
            tensors = load(order["path"], stack)
            check = touched(tensors)
            seconds = time.perf_counter() - start_s
            del tensors
        gc.collect()
        answer = {"seconds": seconds, "resident": resident, "check": check}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
