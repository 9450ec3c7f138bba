"""A model without weights: its attention state is the tokens themselves.

The next token is a function of every token of the context, read back through the block table as a
kernel reads keys. A block that two sequences own, that was published before it was written or found
under a wrong digest, gives a wrong answer here at once.
"""

from collections.abc import Container, Iterable, Sequence

import numpy as np
import torch

from deepseek.engine.batch_scheduler import BatchScheduler, Part
from deepseek.engine.engines.decoder import MIN_STEP_TOKENS
from deepseek.engine.runner import PendingStep, awaited_tokens
from deepseek.engine.step_inputs import StepInputs, build_inputs

VOCAB_SIZE = 5
_NOTHING = -1


def next_token(context: Iterable[int]) -> int:
    """Return the token that follows: another one for nearly every change of the context."""
    state = 1
    for token in context:
        state = (state * 48_271 + token) % 2_147_483_647
    return state // 7 % VOCAB_SIZE


def answer(prompt: Sequence[int], max_tokens: int, *, end: int | None = None) -> list[int]:
    """Return the whole answer, as no batch and no cache could change it."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        tokens.append(next_token(tokens))
        if tokens[-1] == end:
            break
    return tokens[len(prompt) :]


class TokenMemory:
    """A runner over such a memory; refuses steps that break what `StepBatch` promises.

    Asynchronous, it hides a step's tokens until they are waited for, as a device does.
    """

    def __init__(
        self,
        scheduler: BatchScheduler,
        *,
        is_asynchronous: bool = False,
        short_of_memory: Container[int] = (),
        broken: Container[int] = (),
    ) -> None:
        """Take the calls of `run` at which only the smallest step has room, and those that fail."""
        self.is_asynchronous = is_asynchronous
        self.last_parts: Sequence[Part] = ()
        """Of the last step that was started."""
        self.num_steps = 0
        self._scheduler = scheduler
        self._short_of_memory = short_of_memory
        self._broken = broken
        self._num_calls = 0
        rows = scheduler.pool.num_blocks * scheduler.pool.block_tokens
        self._tokens = np.full(rows, _NOTHING, dtype=np.int64)
        self._positions = np.full(rows, _NOTHING, dtype=np.int64)

    def run(self, parts: Sequence[Part], *, previous: PendingStep | None) -> "HiddenTokens":
        check_parts(self._scheduler, parts)
        inputs = build_inputs(
            parts,
            block_tokens=self._scheduler.pool.block_tokens,
            previous=awaited_tokens(previous),
        )
        self._num_calls += 1
        if self._num_calls in self._broken:
            raise StepFailed
        is_smallest = len(parts) == 1 and inputs.num_rows <= MIN_STEP_TOKENS
        if self._num_calls in self._short_of_memory and not is_smallest:
            raise torch.OutOfMemoryError("out of memory")
        tokens = inputs.token_ids.astype(np.int64)
        if inputs.awaited is not None:
            assert isinstance(previous, HiddenTokens)
            for row in np.flatnonzero(inputs.awaited >= 0):
                tokens[row] = previous.tokens[inputs.awaited[row]]
        assert len(set(inputs.kv_rows.tolist())) == inputs.num_rows, "two rows in one place"
        self._tokens[inputs.kv_rows] = tokens
        self._positions[inputs.kv_rows] = inputs.positions
        self.last_parts = parts
        self.num_steps += 1
        return HiddenTokens(parts, [self._draw(inputs, row) for row in inputs.due_rows.tolist()])

    def close(self) -> None:
        self._tokens[:] = _NOTHING

    def _draw(self, inputs: StepInputs, row: int) -> int:
        owner = int(np.searchsorted(inputs.query_starts, row, side="right")) - 1
        block_tokens = self._scheduler.pool.block_tokens
        context = np.arange(inputs.positions[row] + 1)
        places = inputs.block_tables[owner, context // block_tokens] * block_tokens
        places += context % block_tokens
        assert np.array_equal(self._positions[places], context), "a block of something else"
        return next_token(self._tokens[places].tolist())


class StepFailed(Exception):
    """What a device says when it cannot go on."""


class HiddenTokens:
    """A step's tokens, on the device until `wait`."""

    def __init__(self, parts: Sequence[Part], tokens: list[int]) -> None:
        self.parts = parts
        self.tokens = tokens

    def wait(self) -> tuple[list[int], dict[int, torch.Tensor]]:
        return self.tokens, {}


def check_parts(scheduler: BatchScheduler, parts: Sequence[Part]) -> None:
    """Assert what every step must be."""
    counts = [part.num_rows for part in parts]
    assert 0 < sum(counts) <= scheduler.max_step_tokens
    assert min(counts) > 0
    num_single = counts.count(1)
    assert all(count == 1 for count in counts[:num_single]), "single rows come first"
    assert len({part.sequence.id for part in parts}) == len(parts)
    owners: dict[int, int] = {}
    for sequence in scheduler.running:
        for block in sequence.blocks:
            owners[block] = owners.get(block, 0) + 1
    for part in parts:
        assert part.sequence.is_running
        assert part.num_due <= part.num_rows
        first, last = part.start, part.start + part.num_rows - 1
        block_tokens = scheduler.pool.block_tokens
        for index in range(first // block_tokens, last // block_tokens + 1):
            assert owners[part.sequence.blocks[index]] == 1, "writes where another reads"


def check_between_steps(scheduler: BatchScheduler, in_flight: Sequence[Part]) -> None:
    """Assert that blocks and tokens are accounted for; `in_flight` are the parts not yet read."""
    assert len(scheduler.running) <= scheduler.max_running
    assert all(sequence.is_running for sequence in scheduler.running)
    assert not any(sequence.is_running or sequence.blocks for sequence in scheduler.waiting)
    used = {block for sequence in scheduler.running for block in sequence.blocks}
    assert scheduler.pool.num_used == len(used)
    due = {part.sequence.id: part.num_due for part in in_flight}
    for sequence in (*scheduler.running, *scheduler.waiting):
        assert sequence.num_in_flight == due.get(sequence.id, 0)
        assert 0 <= sequence.num_scheduled <= len(sequence.tokens) + sequence.num_in_flight
        assert len(sequence.blocks) * scheduler.pool.block_tokens >= sequence.num_scheduled
