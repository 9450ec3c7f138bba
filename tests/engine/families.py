"""Steps engines in the test's own process; what the worker does, without a socket."""

from pathlib import Path

import torch

from deepseek.core.requests import GenerateRequest, SamplingParams
from deepseek.core.wire import Failed, TokenDelta
from deepseek.engine.engines.decoder import DecoderEngine
from deepseek.engine.grammar import GrammarCompiler
from deepseek.engine.kv_cache import KVCache
from deepseek.engine.models.registry import load_decoder


def make_engine(
    path: Path,
    *,
    capacity_tokens: int = 4000,
    max_len: int = 256,
    max_step_tokens: int = 48,
    max_running: int = 8,
    eos_token_ids: tuple[int, ...] = (),
) -> DecoderEngine:
    decoder = load_decoder(path, dtype=torch.float32, device="cpu")
    cache = KVCache(
        decoder.kv_shape,
        num_slots=2 * max_running,
        max_len=max_len,
        capacity_tokens=capacity_tokens,
        device="cpu",
    )
    grammars = GrammarCompiler(path, vocab_size=decoder.vocab_size, eos_token_ids=eos_token_ids)
    return DecoderEngine(
        "m",
        decoder,
        cache,
        grammars=grammars,
        eos_token_ids=eos_token_ids,
        max_step_tokens=max_step_tokens,
        max_running=max_running,
    )


def greedy(request_id: int, prompt: list[int], max_tokens: int) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    return GenerateRequest(id=request_id, model="m", prompt_token_ids=prompt, sampling=sampling)


def run_all(engine: DecoderEngine, requests: list[GenerateRequest]) -> dict[int, list[int]]:
    """Step until nothing is left; return every request's tokens."""
    for request in requests:
        engine.add(request)
    answers: dict[int, list[int]] = {request.id: [] for request in requests}
    while engine.has_work:
        for output in engine.step():
            assert not isinstance(output, Failed), output
            assert isinstance(output, TokenDelta)
            answers[output.id].extend(output.token_ids)
    return answers
