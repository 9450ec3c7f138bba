"""The queues of one simulated model: who takes part in a step, and what comes of it.

They follow the real engines' rules: `deepseek.engine.batch_scheduler` for decoders (decoding
sequences first, then prompt chunks, KV blocks taken as contexts grow, the last admitted one
preempted where there are none), `deepseek.engine.engines.encoder` for encoders. Prefix reuse is
not simulated.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Protocol, cast

from deepseek.scheduling.batching.base import (
    QueuedRequest,
    StepLimits,
    StepPlan,
    StepShape,
    prompt_pairs,
)
from deepseek.scheduling.simulation.requests import SimulatedRequest

BLOCK_TOKENS = 16
"""Tokens of one KV block, as the engine's."""
_SMALLEST_STEP_TOKENS = 16
"""The engine does not shrink its steps below this after one that found no memory."""

_due_s = attrgetter("due_s")


@dataclass(slots=True, kw_only=True)
class Batch:
    """One step's parts."""

    decoding: list[SimulatedRequest] = field(default_factory=list)
    """One row each."""
    chunks: list[tuple[SimulatedRequest, int]] = field(default_factory=list)
    """Prompts, and how many rows of each."""
    shape: StepShape


class RequestQueue(Protocol):
    """What a simulated model keeps its requests in."""

    waiting: deque[SimulatedRequest]
    running: list[SimulatedRequest]
    num_preemptions: int

    @property
    def limits(self) -> StepLimits: ...
    @property
    def kv_tokens_used(self) -> int: ...
    @property
    def kv_tokens_capacity(self) -> int: ...

    def take(self, plan: StepPlan) -> Batch | None:
        """Return who takes part in the next step; None: nobody can."""
        ...

    def finish(self, batch: Batch, now_s: float) -> list[SimulatedRequest]:
        """Account for a step that ended at `now_s`; return the requests that are done."""
        ...

    def take_back(self, batch: Batch) -> None:
        """Undo a step that found no memory, and make the next ones smaller."""
        ...

    def fail(self, batch: Batch) -> list[SimulatedRequest]:
        """Drop and return the requests that go with a failed step."""
        ...

    def refuse(self, requests: Iterable[QueuedRequest]) -> list[SimulatedRequest]:
        """Take waiting requests out and return them."""
        ...


class DecoderQueue:
    """Continuous batching over a KV cache; see `RequestQueue`."""

    def __init__(self, limits: StepLimits, *, kv_tokens: int) -> None:
        """Start empty, with a KV cache of so many tokens."""
        self._limits = limits
        self._num_blocks = kv_tokens // BLOCK_TOKENS
        self._num_free = self._num_blocks
        self.waiting: deque[SimulatedRequest] = deque()
        self.running: list[SimulatedRequest] = []
        self.num_preemptions = 0

    @property
    def limits(self) -> StepLimits:
        return self._limits

    @property
    def kv_tokens_used(self) -> int:
        return (self._num_blocks - self._num_free) * BLOCK_TOKENS

    @property
    def kv_tokens_capacity(self) -> int:
        return self._num_blocks * BLOCK_TOKENS

    def take(self, plan: StepPlan) -> Batch | None:
        """Admit, then give rows to those that decode and to prompts, in this order."""
        self._admit(plan)
        budget = min(plan.max_tokens, self._limits.max_tokens)
        decoding = [request for request in self.running if request.num_pending == 1]
        if len(decoding) > budget:
            decoding = sorted(decoding, key=_due_s)[:budget]
        # Those on a block's border alone need another one.
        growing = [r for r in decoding if r.num_computed >= r.num_blocks * BLOCK_TOKENS]
        if len(growing) <= self._num_free:
            for request in growing:
                request.num_blocks += 1
            self._num_free -= len(growing)
        else:
            decoding = self._with_room(decoding)
        budget -= len(decoding)
        chunks = self._chunks(budget, may_preempt=not decoding)
        if not decoding and not chunks:
            return None
        return _batch(decoding, chunks)

    def finish(self, batch: Batch, now_s: float) -> list[SimulatedRequest]:
        """Advance every part by its rows."""
        done: list[SimulatedRequest] = []
        for request, num_rows in batch.chunks:
            request.num_computed += num_rows
            request.num_pending -= num_rows
            if request.num_pending == 0:
                self._answer(request, now_s, done)
        for request in batch.decoding:
            request.num_computed += 1
            self._answer(request, now_s, done)
        if done:
            self._leave(done)
        return done

    def take_back(self, batch: Batch) -> None:
        """Halve the limits below what the step held."""
        num_parts = len(batch.decoding) + len(batch.chunks)
        num_rows = len(batch.decoding) + sum(rows for _, rows in batch.chunks)
        self._limits = StepLimits(
            max_tokens=min(self._limits.max_tokens, max(_SMALLEST_STEP_TOKENS, num_rows // 2)),
            max_sequences=max(1, min(self._limits.max_sequences, num_parts // 2)),
        )
        for request in self.running[: self._limits.max_sequences - 1 : -1]:
            self._preempt(request)

    def fail(self, batch: Batch) -> list[SimulatedRequest]:
        """Drop all that run, as the engine does."""
        failed = list(self.running)
        self._leave(failed)
        return failed

    def refuse(self, requests: Iterable[QueuedRequest]) -> list[SimulatedRequest]:
        """Drop them from the queue."""
        return _taken_out(self.waiting, requests)

    # admission

    def _admit(self, plan: StepPlan) -> None:
        limit = min(plan.max_sequences, self._limits.max_sequences)
        if not self.waiting or len(self.running) >= limit:
            return
        queue = cast(
            "Iterable[SimulatedRequest]", self.waiting if plan.order is None else plan.order
        )
        admitted: list[SimulatedRequest] = []
        for request in itertools.islice(queue, limit - len(self.running)):
            if not self._start(request):
                break
            self.running.append(request)
            admitted.append(request)
        if admitted:
            _taken_out(self.waiting, admitted)

    def _start(self, request: SimulatedRequest) -> bool:
        """Give a request room for its prompt; one that runs alone may grow chunk by chunk."""
        missing = -(-request.num_pending // BLOCK_TOKENS)
        if missing > self._num_free:
            if self.running:
                return False
            missing = self._num_free
        request.num_blocks = missing
        self._num_free -= missing
        return True

    # rows and blocks

    def _chunks(self, budget: int, *, may_preempt: bool) -> list[tuple[SimulatedRequest, int]]:
        chunks: list[tuple[SimulatedRequest, int]] = []
        if budget <= 0:
            return chunks
        for request in [r for r in self.running if r.num_pending > 1]:
            num_rows = min(request.num_pending, budget)
            if self._make_room(request, num_rows, may_preempt=may_preempt and not chunks):
                chunks.append((request, num_rows))
                budget -= num_rows
                if budget <= 0:
                    break
        return chunks

    def _with_room(self, decoding: Sequence[SimulatedRequest]) -> list[SimulatedRequest]:
        """Return those that find a block, others preempted for them."""
        return [request for request in decoding if self._make_room(request, 1, may_preempt=True)]

    def _make_room(self, request: SimulatedRequest, num_rows: int, *, may_preempt: bool) -> bool:
        if request.num_blocks == 0 and request not in self.running:
            return False  # preempted for one before it
        wanted = -(-(request.num_computed + num_rows) // BLOCK_TOKENS)
        while (missing := wanted - request.num_blocks) > self._num_free:
            victim = self.running[-1]
            if not may_preempt or (victim is request and len(self.running) == 1):
                return False
            self._preempt(victim)
            if victim is request:
                return False
        if missing > 0:
            request.num_blocks += missing
            self._num_free -= missing
        return True

    def _preempt(self, request: SimulatedRequest) -> None:
        self._leave([request])
        request.num_pending = request.prompt_tokens + request.num_output
        request.num_computed = 0
        self.waiting.appendleft(request)
        self.num_preemptions += 1

    def _leave(self, requests: Sequence[SimulatedRequest]) -> None:
        gone = {request.id for request in requests}
        self.running = [request for request in self.running if request.id not in gone]
        for request in requests:
            self._num_free += request.num_blocks
            request.num_blocks = 0

    @staticmethod
    def _answer(request: SimulatedRequest, now_s: float, done: list[SimulatedRequest]) -> None:
        request.num_pending = 1
        request.num_output += 1
        if request.first_token_s is None:
            request.first_token_s = now_s
        request.due_s = request.first_token_s + request.num_output * request.itl_s
        if request.num_output >= request.output_tokens:
            request.ended_s = now_s
            done.append(request)


class EncoderQueue:
    """A request is answered by one step; see `RequestQueue`."""

    kv_tokens_used = kv_tokens_capacity = 0
    num_preemptions = 0

    def __init__(self, limits: StepLimits) -> None:
        """Start empty."""
        self._limits = limits
        self.waiting: deque[SimulatedRequest] = deque()
        self.running: list[SimulatedRequest] = []

    @property
    def limits(self) -> StepLimits:
        return self._limits

    def take(self, plan: StepPlan) -> Batch | None:
        """Take the oldest, or first in the plan, and all after it that fit beside."""
        queue = cast(
            "Iterable[SimulatedRequest]", self.waiting if plan.order is None else plan.order
        )
        budget = min(plan.max_tokens, self._limits.max_tokens)
        taken: list[SimulatedRequest] = []
        for request in itertools.islice(queue, min(plan.max_sequences, self._limits.max_sequences)):
            if taken and request.num_pending > budget:
                continue
            taken.append(request)
            budget -= request.num_pending
        if not taken:
            return None
        _taken_out(self.waiting, taken)
        return _batch([], [(request, request.num_pending) for request in taken])

    def finish(self, batch: Batch, now_s: float) -> list[SimulatedRequest]:
        """Answer all of them."""
        done = [request for request, _ in batch.chunks]
        for request in done:
            request.num_output = 1
            request.first_token_s = request.ended_s = now_s
        return done

    def take_back(self, batch: Batch) -> None:
        """Put them back; the engine's encoders do not shrink."""
        self.waiting.extendleft(request for request, _ in reversed(batch.chunks))

    def fail(self, batch: Batch) -> list[SimulatedRequest]:
        """Drop those of the step."""
        return [request for request, _ in batch.chunks]

    def refuse(self, requests: Iterable[QueuedRequest]) -> list[SimulatedRequest]:
        """Drop them from the queue."""
        return _taken_out(self.waiting, requests)


def _batch(decoding: list[SimulatedRequest], chunks: list[tuple[SimulatedRequest, int]]) -> Batch:
    num_decoding = num_prefill = num_context = num_pairs = 0
    for request in decoding:
        num_context += request.num_computed + 1
        if request.num_output:
            num_decoding += 1
        else:
            num_pairs += prompt_pairs(1, start=request.num_computed)
            num_prefill += 1  # a prompt's last token, or its only one
    for request, num_rows in chunks:
        num_context += request.num_computed + num_rows
        num_prefill += num_rows
        num_pairs += prompt_pairs(num_rows, start=request.num_computed)
    shape = StepShape(
        num_prefill_tokens=num_prefill,
        num_decoding=num_decoding,
        num_context_tokens=num_context,
        num_sequences=len(decoding) + len(chunks),
        num_prefill_pairs=num_pairs,
    )
    return Batch(decoding=decoding, chunks=chunks, shape=shape)


def _taken_out(
    waiting: deque[SimulatedRequest], requests: Iterable[QueuedRequest]
) -> list[SimulatedRequest]:
    """Remove requests from the queue and return them; cheap for those at its head."""
    wanted = {request.id for request in requests}
    taken: list[SimulatedRequest] = []
    while waiting and waiting[0].id in wanted:
        taken.append(waiting.popleft())
    if len(taken) < len(wanted):
        taken += [request for request in waiting if request.id in wanted]
        left = [request for request in waiting if request.id not in wanted]
        waiting.clear()
        waiting.extend(left)
    return taken
