"""Steps engines in the test's own process; what the worker does, without a socket."""

from pathlib import Path

import torch

from deepseek.core.precision import Precision
from deepseek.core.requests import GenerateRequest, SamplingParams
from deepseek.core.wire import Failed, TokenDelta
from deepseek.engine.adapters import AdapterSet
from deepseek.engine.batch_scheduler import BatchScheduler
from deepseek.engine.engines.decoder import DecoderEngine
from deepseek.engine.grammar import GrammarCompiler
from deepseek.engine.kv_cache import DEFAULT_BLOCK_TOKENS, BlockPool
from deepseek.engine.kv_storage import KVStorage
from deepseek.engine.linear import head_factory, linear_factory
from deepseek.engine.models.registry import load_decoder
from deepseek.engine.nested_linear import PRECISIONS
from deepseek.engine.ops.registry import make_ops
from deepseek.engine.prompt_lookup import PromptLookup
from deepseek.engine.runner import CpuRunner
from deepseek.engine.speculation import Speculation


class Bold(PromptLookup):
    """Guesses whatever it seems worth, so that no answer hangs on how busy the machine is."""

    def _worthwhile(self, chance: float) -> int:
        return self._max_draft


def make_engine(
    path: Path,
    *,
    capacity_tokens: int = 4000,
    max_len: int = 256,
    max_step_tokens: int = 48,
    max_running: int = 8,
    eos_token_ids: tuple[int, ...] = (),
    speculation: Speculation | None = None,
    max_adapters: int = 4,
    runner_class: type[CpuRunner] = CpuRunner,
    quantization: str | None = None,
) -> DecoderEngine:
    decoder = load_decoder(
        path,
        dtype=torch.float32,
        device="cpu",
        ops=make_ops("cpu"),
        linear_factory=linear_factory(quantization, device="cpu"),
        head_factory=head_factory(quantization, device="cpu"),
    )
    num_blocks = capacity_tokens // DEFAULT_BLOCK_TOKENS
    storage = KVStorage(
        decoder.kv_shape, num_blocks=num_blocks, block_tokens=DEFAULT_BLOCK_TOKENS, device="cpu"
    )
    grammars = GrammarCompiler(path, vocab_size=decoder.vocab_size, eos_token_ids=eos_token_ids)
    return DecoderEngine(
        "m",
        runner_class(decoder, storage, eos_token_ids=eos_token_ids),
        BatchScheduler(
            BlockPool(num_blocks), max_step_tokens=max_step_tokens, max_running=max_running
        ),
        grammars=grammars,
        eos_token_ids=eos_token_ids,
        vocab_size=decoder.vocab_size,
        max_model_len=max_len,
        adapters=AdapterSet(
            decoder.projections,
            dtype=torch.float32,
            device="cpu",
            max_adapters=max_adapters,
            max_rank=16,
        ),
        speculation=speculation,
        precisions=PRECISIONS if quantization == "nested" else (),
    )


def greedy(
    request_id: int, prompt: list[int], max_tokens: int, *, precision: Precision | None = None
) -> GenerateRequest:
    return GenerateRequest(
        id=request_id,
        model="m",
        prompt_token_ids=prompt,
        sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0),
        precision=precision,
    )


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
