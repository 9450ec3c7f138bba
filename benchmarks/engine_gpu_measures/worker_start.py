"""A worker process from its start to the first token."""

import time
from pathlib import Path

from deepseek.core.requests import GenerateRequest, SamplingParams, Task
from deepseek.core.wire import ModelSpec, WorkerSpec
from deepseek.serving.replica import Replica, RestartPolicy


async def seconds_to_first_token(directory: Path) -> dict[str, float]:
    """Return the seconds in all and of each phase."""
    model = ModelSpec(
        name="m", path=str(directory), task=Task.GENERATE, dtype="bfloat16", max_model_len=16384
    )
    spec = WorkerSpec(
        pool="gpu",
        socket_path="",
        device="cuda",
        models=[model],
        kv_cache_bytes=None,
        max_step_tokens=8192,
        max_running=256,
    )
    start = time.perf_counter()
    replica = Replica(spec, RestartPolicy())
    await replica.start()
    try:
        ready = time.perf_counter()
        request = GenerateRequest(
            id=replica.next_id(),
            model="m",
            prompt_token_ids=list(range(2, 66)),
            sampling=SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True),
        )
        async for _ in replica.stream(request):
            pass
        first = time.perf_counter()
        info = replica.model("m")
        return {
            "total": first - start,
            "imports and device context": ready - start - (info.load_s if info else 0.0),
            "loading, profile run, graphs": info.load_s if info else 0.0,
            "first request": first - ready,
        }
    finally:
        await replica.stop(grace_s=5)
