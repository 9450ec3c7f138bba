"""Requests for any engine, what comes back, and what transformers answers."""

from typing import Any

import torch

from deepseek.core.requests import GenerateRequest, SamplingParams, Task
from deepseek.core.wire import ModelSpec, TokenDelta, WorkerSpec
from deepseek.engine.base import Engine

PROMPT = [38, 39, 40]
END_AT = 10
"""Place in the greedy answer to PROMPT of the token that `contract_dir` calls its end."""
KV_BYTES = 3 << 19
"""1,536 tokens of the tiny Qwen3: three contexts."""


def worker_spec(path: Any, engine: Any) -> WorkerSpec:
    """A worker with little room: eight requests at once, 64 tokens a step."""
    model = ModelSpec(name="m", path=str(path), task=Task.GENERATE, dtype="float32", engine=engine)
    return WorkerSpec(
        pool="p",
        socket_path="",
        device="cpu",
        models=[model],
        num_threads=1,
        kv_cache_bytes=KV_BYTES,
        max_step_tokens=64,
        max_running=8,
    )


def ask(request_id: int, prompt: list[int], max_tokens: int, **sampling: Any) -> GenerateRequest:
    """Return a request that is greedy and runs to its last token unless `sampling` says else."""
    params = SamplingParams(
        **{"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True, **sampling}
    )
    return GenerateRequest(id=request_id, model="m", prompt_token_ids=prompt, sampling=params)


def run(engine: Engine, *requests: GenerateRequest) -> dict[int, list[TokenDelta]]:
    """Add requests, step until nothing is left, and return every request's deltas."""
    for request in requests:
        engine.add(request)
    deltas: dict[int, list[TokenDelta]] = {request.id: [] for request in requests}
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output, TokenDelta), output
            deltas[output.id].append(output)
    for found in deltas.values():
        assert found[-1].finish_reason is not None
        assert all(delta.finish_reason is None for delta in found[:-1])
    return deltas


def tokens_of(deltas: list[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def answer(engine: Engine, request: GenerateRequest) -> tuple[list[int], str | None]:
    """Return one request's tokens and why they end."""
    deltas = run(engine, request)[request.id]
    return tokens_of(deltas), deltas[-1].finish_reason


def greedy_reference(model: Any, prompt: list[int], count: int, **options: Any) -> list[int]:
    """Return transformers' own greedy answer of exactly `count` tokens."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=count,
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens
