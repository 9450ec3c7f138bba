"""Captures CUDA graphs while another thread builds models, parks them or takes them apart.

While a graph is captured, nobody in the process may wait for the whole device or have torch give
its cached memory back: both end the capture, or fail themselves. Everything else another thread may
do, allocate memory for one.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_one_at_a_time = threading.RLock()


@contextmanager
def captured(graph: torch.cuda.CUDAGraph, *, pool: tuple[int, int] | None) -> Iterator[None]:
    """Record into `graph` what the block does; waits for a `whole_device` block to end."""
    with (
        _one_at_a_time,
        torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
    ):
        yield


@contextmanager
def whole_device(device: torch.device) -> Iterator[None]:
    """Wait until the device has done all it was given; no graph is captured inside of the block.

    To be left soon: the steps' thread may be waiting to capture a graph.
    """
    with _one_at_a_time:
        torch.cuda.synchronize(device)
        yield


def empty_cache(device: torch.device) -> None:
    """Give back to the device what torch keeps of it for later."""
    with whole_device(device):
        torch.cuda.empty_cache()
