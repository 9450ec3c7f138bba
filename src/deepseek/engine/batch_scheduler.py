"""What the next step runs: admission, prompt chunks, memory pressure.

A step mixes one token of every decoding sequence with chunks of waiting prompts under a token
budget, so that long prompts never stop running streams (Sarathi-Serve, arXiv:2403.02310). When
blocks run out, the sequence admitted last gives its own back and is computed again later: no
request dies of memory pressure.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

from deepseek.engine.kv_cache import BlockPool, common_prefix, extend_digests
from deepseek.engine.sequence import Sequence
from deepseek.scheduling.batching.base import StepPlan

WORTH_WAITING_TOKENS = 64
"""A prompt waits while another computes a common prefix that is at least this much longer than what
the cache holds already (answers of one request with `n` > 1, a burst on one system prompt)."""


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence's rows in a step."""

    sequence: Sequence
    start: int
    """Position of the first row."""
    num_rows: int
    num_due: int
    """How many of the last rows yield a token: none for a prompt's earlier chunks, one for its last
    chunk and for decoding, more when draft tokens are verified."""
    draft: tuple[int, ...] = ()
    """Guessed tokens after the last known one; `num_due` is one more."""

    def accepted(self, drawn: list[int]) -> list[int]:
        """Return the drawn tokens that stand: each was computed after right guesses only."""
        count = 1
        for guess, token in zip(self.draft, drawn, strict=False):
            if guess != token:
                break
            count += 1
        return drawn[:count]


class BatchScheduler:
    """The sequences of one model and the blocks they own."""

    def __init__(
        self, pool: BlockPool, *, max_step_tokens: int, max_running: int, lookahead: int = 0
    ) -> None:
        """Start empty; a step has at most `max_step_tokens` rows of `max_running` sequences.

        `lookahead`: on how many tokens after a block its content depends (1 where a prediction head
        keeps state there, which is made from the token after each row).
        """
        self.pool = pool
        self._lookahead = lookahead
        self.max_step_tokens = max_step_tokens
        self.max_running = max_running
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.prefix_hit_tokens = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def find(self, request_id: int) -> Sequence | None:
        """Return the sequence of a request, wherever it is."""
        for sequences in (self.running, self.waiting):
            for sequence in sequences:
                if sequence.id == request_id:
                    return sequence
        return None

    def schedule(
        self,
        draft: Callable[[Sequence], tuple[int, ...]] | None = None,
        *,
        plan: StepPlan | None = None,
    ) -> list[Part]:
        """Return the next step's parts, those of a single row first; empty when nothing can run.

        `draft` may guess tokens of a decoding sequence. `plan` bounds the step further and orders
        admission. The parts count as scheduled from now on.
        """
        self._admit(plan)
        parts: list[Part] = []
        budget = (
            self.max_step_tokens if plan is None else min(self.max_step_tokens, plan.max_tokens)
        )
        decoding = [s for s in self.running if s.num_pending == 1 and not self._is_complete(s)]
        if len(decoding) > budget:
            decoding.sort(key=lambda sequence: sequence.due_s)  # stable: the oldest first
        spare = budget - len(decoding)  # guesses never cost another sequence its row
        # Room for one sequence preempts later ones only, so those chosen stay.
        for sequence in decoding[:budget]:
            guessed: tuple[int, ...] = ()
            if draft is not None and spare > 0 and sequence.is_decoding:
                guessed = draft(sequence)[:spare]
            if self._make_room(sequence, 1):
                if guessed and not self._grow(sequence, 1 + len(guessed)):
                    guessed = ()
                parts.append(self._part(sequence, 1, guessed))
                budget -= 1 + len(guessed)
                spare -= len(guessed)
        for sequence in list(self.running):
            if sequence.num_pending <= 1 or budget <= 0:
                continue
            size = min(sequence.num_pending, budget)
            if self._make_room(sequence, size, preempt=not parts):
                parts.append(self._part(sequence, size, ()))
                budget -= size
        parts.sort(key=lambda part: part.num_rows > 1)  # stable; a chunk too may be of one row
        for part in parts:
            sequence = part.sequence
            sequence.num_scheduled += part.num_rows
            sequence.num_in_flight += part.num_due
        return parts

    def remove(self, sequence: Sequence, *, trusted: bool = True) -> None:
        """Take a sequence out and free its blocks; `trusted` ones stay reusable."""
        if sequence.is_running:
            self._stop(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.is_over = True
        self._free(sequence, trusted=trusted)

    def publish(self, sequence: Sequence) -> None:
        """Let others share the full blocks of what has been computed and is known."""
        pool = self.pool
        num_known = min(sequence.num_scheduled, len(sequence.tokens) - self._lookahead)
        num_full = num_known // pool.block_tokens
        if num_full <= sequence.num_published:
            return
        self._extend(sequence, num_full * pool.block_tokens + self._lookahead)
        for index in range(sequence.num_published, num_full):
            pool.publish(sequence.blocks[index], sequence.digests[index])
        sequence.num_published = num_full

    def shrink(self, *, max_tokens: int, max_running: int) -> None:
        """Bound the next steps further; sequences beyond the bound wait again."""
        self.max_step_tokens = min(self.max_step_tokens, max_tokens)
        self.max_running = max(1, min(self.max_running, max_running))
        for sequence in self.running[: self.max_running - 1 : -1]:
            self.preempt(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Give a sequence's blocks back; it is computed again when there is room."""
        self._stop(sequence)
        self._free(sequence, trusted=True)
        sequence.num_scheduled = 0
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _admit(self, plan: StepPlan | None) -> None:
        """Move waiting sequences among the running ones: in the plan's order, or oldest first."""
        limit = self.max_running if plan is None else min(self.max_running, plan.max_sequences)
        if not self.waiting or len(self.running) >= limit:
            return
        queue: Iterable[Sequence] = self.waiting
        if plan is not None and plan.order is not None:
            # The policy was shown this scheduler's own sequences, and orders those.
            queue = cast("Iterable[Sequence]", plan.order)
        admitted: set[int] = set()
        num_held_back = 0
        for sequence in queue:
            if len(self.running) >= limit or num_held_back == self.max_running:
                break
            if sequence.num_in_flight or self._should_wait(sequence):
                num_held_back += 1
                continue
            if not self._start(sequence):
                break
            self.running.append(sequence)
            sequence.is_running = True
            admitted.add(sequence.id)
        if admitted:
            self.waiting = deque(s for s in self.waiting if s.id not in admitted)

    def _start(self, sequence: Sequence) -> bool:
        """Give a sequence its cached prefix and room for its prompt; False if there is none."""
        pool, block_tokens = self.pool, self.pool.block_tokens
        shared = self._cached_prefix(sequence)
        pool.share(shared)
        # A prompt that finds no room beside what runs would only preempt others; one that runs
        # alone may grow chunk by chunk.
        missing = -(-len(sequence.tokens) // block_tokens) - len(shared)
        if missing > pool.num_free and self.running:
            pool.release(shared)
            return False
        sequence.blocks = shared
        sequence.num_published = len(shared)
        sequence.num_scheduled = len(shared) * block_tokens
        if sequence.num_output == 0:
            sequence.num_cached = sequence.num_scheduled
            self.prefix_hit_tokens += sequence.num_scheduled
        return self._grow(sequence, min(missing, pool.num_free) * block_tokens)

    def _cached_prefix(self, sequence: Sequence) -> list[int]:
        # The last token is always computed: its row gives the next token's logits.
        self._extend(sequence, len(sequence.tokens))
        num_full = (len(sequence.tokens) - 1) // self.pool.block_tokens
        return self.pool.match(sequence.digests[:num_full])

    def _extend(self, sequence: Sequence, length: int) -> None:
        extend_digests(
            sequence.digests,
            sequence.tokens[:length],
            block_tokens=self.pool.block_tokens,
            salt=sequence.salt,
            lookahead=self._lookahead,
        )

    def _should_wait(self, sequence: Sequence) -> bool:
        """Say whether another prompt is computing a prefix worth waiting for."""
        self._extend(sequence, len(sequence.tokens))
        # Digests are chained: one that differs says that all after it do.
        place = WORTH_WAITING_TOKENS // self.pool.block_tokens - 1
        if place >= len(sequence.digests):
            return False
        coming = max(
            (
                min(common_prefix(sequence.tokens, other.tokens), other.num_prompt)
                for other in self.running
                if other.num_pending > 1
                and other.digests[place : place + 1] == sequence.digests[place : place + 1]
            ),
            default=0,
        )
        if coming < WORTH_WAITING_TOKENS:
            return False
        held = len(self._cached_prefix(sequence)) * self.pool.block_tokens
        return coming - held >= WORTH_WAITING_TOKENS

    def _make_room(self, sequence: Sequence, num_rows: int, *, preempt: bool = True) -> bool:
        """Make sure the next rows of a sequence have blocks; False if it must sit this step out."""
        if not sequence.is_running:
            return False  # preempted for one before it
        while not self._grow(sequence, num_rows):
            victim = self.running[-1]
            if not preempt or (victim is sequence and len(self.running) == 1):
                return False
            self.preempt(victim)
            if victim is sequence:
                return False
        return True

    def _grow(self, sequence: Sequence, num_rows: int) -> bool:
        length = sequence.num_scheduled + num_rows
        missing = -(-length // self.pool.block_tokens) - len(sequence.blocks)
        if missing <= 0:
            return True
        taken = self.pool.allocate(missing)
        if taken is None:
            return False
        sequence.blocks.extend(taken)
        return True

    @staticmethod
    def _part(sequence: Sequence, num_rows: int, draft: tuple[int, ...]) -> Part:
        is_last = num_rows == sequence.num_pending
        num_due = 1 + len(draft) if is_last else 0
        return Part(sequence, sequence.num_scheduled, num_rows + len(draft), num_due, draft)

    @staticmethod
    def _is_complete(sequence: Sequence) -> bool:
        """Say whether the tokens in flight are the last ones by length."""
        return sequence.num_output + sequence.num_in_flight >= sequence.sampling.max_tokens

    def _stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        sequence.is_running = False

    def _free(self, sequence: Sequence, *, trusted: bool) -> None:
        if trusted:
            self.pool.release(sequence.blocks)
        else:
            self.pool.discard(sequence.blocks)
        sequence.blocks = []
        sequence.num_published = 0
