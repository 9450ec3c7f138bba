"""A decode step's time by what runs on the device, and what the device waits for."""

import time
from collections import defaultdict
from collections.abc import Iterator

import torch
from frame import Row, fact

from engine_gpu_measures.session import Session

_STEPS = 24
_KINDS = {
    "attention": ("attend", "attention", "split", "flash", "fmha"),
    "linear": ("gemm", "gemv", "linear", "nvjet", "cutlass", "splitK", "matmul"),
    "sampling": ("argmax", "reduce", "sort", "topk", "scan"),
    "norms, rotation, gates": ("norm", "rotate", "silu", "store"),
}


def decode_breakdown(session: Session, *, num_sequences: int) -> Iterator[Row]:
    """Yield ms per decode step: in all, by kind of kernel, and their sum."""
    session.fill(num_sequences=num_sequences, input_tokens=512, output_tokens=512)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(_STEPS):
        session.engine.step()
    torch.cuda.synchronize()
    step_ms = 1e3 * (time.perf_counter() - start) / _STEPS
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(_STEPS):
            session.engine.step()
        torch.cuda.synchronize()
    by_kind: dict[str, float] = defaultdict(float)
    for event in profile.key_averages():
        by_kind[_kind(event.key)] += event.self_device_time_total / 1e3 / _STEPS
    yield fact(f"decode step at {num_sequences} (ms)", step_ms)
    for kind, value in sorted(by_kind.items(), key=lambda item: -item[1]):
        yield fact(f"decode step at {num_sequences}: {kind} (ms)", value)
    # Kernels that are set up while the one before them runs count their wait: then the sum exceeds
    # the step, and says nothing of idleness.
    yield fact(f"decode step at {num_sequences}: all kernels (ms)", sum(by_kind.values()))
    session.abort_all()


def _kind(name: str) -> str:
    lowered = name.lower()
    for kind, words in _KINDS.items():
        if any(word.lower() in lowered for word in words):
            return kind
    return "other"
