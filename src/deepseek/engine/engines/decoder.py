"""The decoder engine: continuous batching over one language model.

Each step is `schedule`, `run`, `postprocess`. A step mixes one token of every decoding sequence
with chunks of waiting prompts under a token budget, so that long prompts never stop running streams
(Sarathi-Serve, arXiv:2403.02310). When memory runs out the sequence admitted last gives its slot
back and is computed again later: no request dies of memory pressure.
"""

import random
from collections import deque
from dataclasses import dataclass

import torch

from deepseek.core.errors import ContextLengthExceeded, InvalidRequest
from deepseek.core.requests import EncodeRequest, FinishReason, GenerateRequest, ModelLoad
from deepseek.core.wire import Failed, TokenDelta
from deepseek.engine.attention import AttentionPlan, padded_rows
from deepseek.engine.attention import Rows as SlotRows
from deepseek.engine.base import Output, Request
from deepseek.engine.grammar import GrammarCompiler
from deepseek.engine.kv_cache import KVCache, common_prefix
from deepseek.engine.models.base import Decoder
from deepseek.engine.sampling import history, sample
from deepseek.engine.sequence import Sequence

WORTH_WAITING_TOKENS = 64
"""A prompt waits while another computes a common prefix that is at least this much longer than what
the cache holds already (answers of one request with `n` > 1, a burst on one system prompt)."""


@dataclass(frozen=True, slots=True)
class _Batch:
    decodes: list[Sequence]
    chunks: list[tuple[Sequence, int]]
    """(sequence, number of its tokens in this step)"""


class DecoderEngine:
    """Steps one decoder; see `deepseek.engine.base.Engine` for the promises."""

    def __init__(
        self,
        name: str,
        decoder: Decoder,
        cache: KVCache,
        *,
        grammars: GrammarCompiler,
        eos_token_ids: tuple[int, ...],
        max_step_tokens: int,
        max_running: int,
    ) -> None:
        self.name = name
        self._decoder = decoder
        self._cache = cache
        self._grammars = grammars
        self._eos_token_ids = eos_token_ids
        self._max_step_tokens = max_step_tokens
        self._max_running = max_running
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._num_preemptions = 0
        self._prefix_hit_tokens = 0

    @property
    def max_model_len(self) -> int:
        return self._cache.max_len

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, request: Request) -> None:
        """Check a generation and queue it."""
        if isinstance(request, EncodeRequest):
            raise InvalidRequest(f"model {self.name!r} generates; it does not encode")
        self._check(request)
        params, prompt = request.sampling, request.prompt_token_ids
        matcher = self._grammars.matcher(params.grammar) if params.grammar else None
        self._waiting.append(
            Sequence(
                request=request,
                tokens=list(prompt),
                num_prompt=len(prompt),
                # Not cryptography: reproducible draws.
                generator=random.Random(params.seed),  # noqa: S311
                matcher=matcher,
                history=history(params, prompt, self._decoder.vocab_size),
            )
        )

    def step(self) -> list[Output]:
        """Run one mixed batch."""
        batch = self._schedule()
        if batch is None:
            return []
        sequences, logits = self._run(batch)
        return self._postprocess(sequences, logits)

    def abort(self, request_id: int) -> None:
        """Drop a request wherever it is; its computed prefix stays reusable."""
        for sequence in self._running:
            if sequence.id == request_id:
                self._leave(sequence)
                return
        self._waiting = deque(s for s in self._waiting if s.id != request_id)

    def fail_running(self) -> list[int]:
        """Drop every running sequence; what its slots hold is not trusted again."""
        failed = list(self._running)
        for sequence in failed:
            slot = sequence.slot
            self._leave(sequence)
            if slot is not None:
                self._cache.evict(slot)
        return [sequence.id for sequence in failed]

    def load(self) -> ModelLoad:
        """Count queues and KV tokens."""
        used = self._cache.used_tokens
        return ModelLoad(
            model=self.name,
            num_waiting=len(self._waiting),
            num_running=len(self._running),
            kv_tokens_used=used,
            kv_tokens_cached=self._cache.resident_tokens - used,
            kv_tokens_capacity=self._cache.capacity_tokens,
            num_preemptions=self._num_preemptions,
            prefix_hit_tokens=self._prefix_hit_tokens,
        )

    def close(self) -> None:
        """Forget all requests and weights."""
        self._waiting.clear()
        self._running.clear()
        del self._decoder, self._cache

    def _check(self, request: GenerateRequest) -> None:
        prompt, limit = request.prompt_token_ids, self.max_model_len
        if not prompt:
            raise InvalidRequest("the prompt has no tokens", param="prompt")
        if request.sampling.max_tokens < 1:
            raise InvalidRequest("max_tokens must be at least 1", param="max_tokens")
        if len(prompt) + request.sampling.max_tokens > limit:
            raise ContextLengthExceeded(
                f"{len(prompt)} prompt tokens and {request.sampling.max_tokens} new ones exceed "
                f"the model's {limit}",
                param="max_tokens",
            )
        vocab = self._decoder.vocab_size
        named = {
            "prompt": prompt,
            "logit_bias": request.sampling.logit_bias,
            "stop_token_ids": request.sampling.stop_token_ids,
        }
        for param, token_ids in named.items():
            unknown = next((token for token in token_ids if not 0 <= token < vocab), None)
            if unknown is not None:
                raise InvalidRequest(
                    f"{param}: token id {unknown} is not in the vocabulary, 0 to {vocab - 1}",
                    param=param,
                )

    # schedule

    def _schedule(self) -> _Batch | None:
        self._admit()
        # Holding rows for one sequence preempts later ones only, so those chosen stay.
        decodes = [s for s in list(self._running) if s.num_pending == 1 and self._hold(s, 1)]
        chunks: list[tuple[Sequence, int]] = []
        budget = self._max_step_tokens - len(decodes)
        for sequence in list(self._running):
            if sequence.slot is None or sequence.num_pending == 1 or budget <= 0:
                continue
            size = min(sequence.num_pending, budget)
            if self._hold(sequence, size, preempt=not decodes and not chunks):
                chunks.append((sequence, size))
                budget -= size
        decodes.sort(key=lambda s: s.slot.index if s.slot else 0)
        return _Batch(decodes, chunks) if decodes or chunks else None

    def _admit(self) -> None:
        """Move waiting sequences into slots, oldest first."""
        held_back: list[Sequence] = []
        while self._waiting and len(self._running) < self._max_running:
            if len(held_back) == self._max_running:
                break
            sequence = self._waiting.popleft()
            if self._should_wait(sequence):
                held_back.append(sequence)
                continue
            acquired = self._cache.acquire(sequence.tokens)
            if acquired is None:
                self._waiting.appendleft(sequence)
                break
            slot, num_held = acquired
            if self._running and not self._cache.reserve(slot, len(sequence.tokens)):
                # Its prompt finds no room beside what runs: starting it would only preempt others.
                self._cache.release(slot)
                self._waiting.appendleft(sequence)
                break
            sequence.slot, sequence.num_computed = slot, num_held
            if sequence.num_output == 0:
                sequence.num_cached = num_held
                self._prefix_hit_tokens += num_held
            self._running.append(sequence)
        self._waiting.extendleft(reversed(held_back))

    def _should_wait(self, sequence: Sequence) -> bool:
        """Say whether another prompt is computing a prefix worth waiting for."""
        prefilling = [s for s in self._running if s.num_pending > 1]
        if not prefilling:
            return False
        coming = max(
            min(common_prefix(sequence.tokens, other.tokens), other.num_prompt)
            for other in prefilling
        )
        if coming < WORTH_WAITING_TOKENS:
            return False
        _, held = self._cache.longest_prefix(sequence.tokens)
        return coming - held >= WORTH_WAITING_TOKENS

    def _hold(self, sequence: Sequence, num_tokens: int, *, preempt: bool = True) -> bool:
        """Make sure the next tokens of a sequence have rows; False if it must sit this step out."""
        if sequence.slot is None:
            return False
        length = sequence.num_computed + num_tokens
        while not self._cache.reserve(sequence.slot, length):
            victim = self._running[-1]
            if not preempt or (victim is sequence and len(self._running) == 1):
                return False
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Give a sequence's slot back; it is computed again when there is room."""
        slot = sequence.slot
        self._leave(sequence)
        if slot is not None:
            self._cache.evict(slot)
        sequence.num_computed = 0
        self._waiting.appendleft(sequence)
        self._num_preemptions += 1

    def _leave(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        if sequence.slot is not None:
            self._cache.release(sequence.slot)
            sequence.slot = None

    # run

    @torch.inference_mode()
    def _run(self, batch: _Batch) -> tuple[list[Sequence], torch.Tensor]:
        """Return the sequences whose next token is due and their logits (rows, vocab)."""
        parts = [(s, 1) for s in batch.decodes] + batch.chunks
        token_ids: list[int] = []
        positions: list[int] = []
        rows: list[SlotRows] = []
        for sequence, size in parts:
            start = sequence.num_computed
            token_ids.extend(sequence.tokens[start : start + size])
            positions.extend(range(start, start + size))
            if sequence.slot is not None:
                rows.append(SlotRows(slot=sequence.slot, num_rows=size, length=start + size))
        num_decodes = len(batch.decodes)
        plan = AttentionPlan(
            self._cache,
            rows[:num_decodes],
            rows[num_decodes:],
            num_heads=self._decoder.num_heads,
        )
        device = self._cache.layers.device
        padding = [0] * (padded_rows(len(token_ids)) - len(token_ids))
        token_ids.extend(padding)
        positions.extend(padding)
        hidden = self._decoder.hidden(
            torch.tensor(token_ids, device=device), torch.tensor(positions, device=device), plan
        )
        due: list[Sequence] = []
        last_rows: list[int] = []
        row = -1
        for sequence, size in parts:
            row += size
            self._computed(sequence, size)
            if sequence.num_pending == 0:
                due.append(sequence)
                last_rows.append(row)
        if not due:
            return [], hidden
        return due, self._decoder.logits(hidden[torch.tensor(last_rows, device=device)])

    @staticmethod
    def _computed(sequence: Sequence, size: int) -> None:
        start = sequence.num_computed
        if sequence.slot is not None:
            sequence.slot.tokens.extend(sequence.tokens[start : start + size])
        sequence.num_computed = start + size

    # postprocess

    @torch.inference_mode()
    def _postprocess(self, sequences: list[Sequence], logits: torch.Tensor) -> list[Output]:
        if not sequences:
            return []
        tokens, logprobs = sample(logits, sequences, eos_token_ids=self._eos_token_ids)
        outputs: list[Output] = []
        for sequence, token, scores in zip(sequences, tokens, logprobs, strict=True):
            sequence.tokens.append(token)
            if sequence.history is not None:
                sequence.history.add(token)
            try:
                reason = self._finish_reason(sequence, token)
            except InvalidRequest as error:
                self._leave(sequence)
                outputs.append(Failed(sequence.id, error.code, error.message, error.param))
                continue
            cached = 0 if sequence.reported else sequence.num_cached
            sequence.reported = True
            outputs.append(
                TokenDelta(
                    sequence.id, [token], reason, cached, None if scores is None else [scores]
                )
            )
            if reason is not None:
                self._leave(sequence)
        return outputs

    def _finish_reason(self, sequence: Sequence, token: int) -> FinishReason | None:
        params = sequence.request.sampling
        if token in params.stop_token_ids:
            return FinishReason.STOP
        if token in self._eos_token_ids and not params.ignore_eos:
            return FinishReason.STOP
        if sequence.matcher is not None and sequence.matcher.advance(token):
            return FinishReason.STOP
        if sequence.num_output >= params.max_tokens:
            return FinishReason.LENGTH
        return None
