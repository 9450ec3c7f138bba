"""Runs one step of a decoder on its device and draws the tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from deepseek.core.precision import Precision
from deepseek.engine.base import BeforePiece
from deepseek.engine.batch import RowChoices, StepBatch
from deepseek.engine.batch_scheduler import Part
from deepseek.engine.kv_storage import KVStorage
from deepseek.engine.models.base import Decoder
from deepseek.engine.sampling import Draw, draw
from deepseek.engine.shapes import padded_rows
from deepseek.engine.step_inputs import Ints, StepInputs, build_inputs, pad_rows


class PendingStep(Protocol):
    """A step that runs, or has run."""

    parts: Sequence[Part]

    def wait(self) -> tuple[list[int], dict[int, torch.Tensor]]:
        """Wait for the tokens of the due rows; returns them and the wanted log-probabilities."""
        ...


class Runner(Protocol):
    """Runs steps in the order they are given."""

    is_asynchronous: bool
    """True where `run` returns before the step has ended, so that the next can be prepared."""

    def run(self, parts: Sequence[Part], *, previous: PendingStep | None) -> PendingStep:
        """Start a step. `previous` is the one that may still run: tokens that only it knows are
        taken from it on the device.

        Raises `torch.OutOfMemoryError` where the device's memory does not suffice.
        """
        ...

    @property
    def can_park(self) -> bool:
        """Whether weights and attention state can leave the device for the host's memory."""
        ...

    def park(self) -> None:
        """Give back their device memory, what the weights hold being kept; no step may run."""
        ...

    def wake(self, before_piece: BeforePiece) -> None:
        """Bring them back, attention state blank.

        `before_piece` is told the size of each piece of weights before it is copied, and may wait
        or raise. Raises that, and `torch.OutOfMemoryError`; parked still then.
        """
        ...

    def drop_host_copy(self) -> None:
        """Stay on the device from now on (`can_park` is False) and need the host no more."""
        ...

    def close(self) -> None:
        """Give back device memory."""
        ...


class CpuRunner:
    """Runs steps at once, in the calling thread."""

    is_asynchronous = False
    can_park = False

    def __init__(
        self, decoder: Decoder, storage: KVStorage, *, eos_token_ids: tuple[int, ...]
    ) -> None:
        self._decoder = decoder
        self._storage = storage
        self._eos_token_ids = eos_token_ids

    @torch.inference_mode()
    def run(self, parts: Sequence[Part], *, previous: PendingStep | None) -> "FinishedStep":
        """Run the step to its end."""
        step = prepare(parts, block_tokens=self._storage.block_tokens, previous=previous)
        logits = self._decoder.forward(step.batch, self._storage.layers, rows=step.rows)
        drawn = draw(logits[: step.num_due], parts, eos_token_ids=self._eos_token_ids)
        return FinishedStep(parts, drawn)

    def park(self) -> None:
        """Do nothing: the device's memory is the host's."""

    def wake(self, before_piece: BeforePiece) -> None:
        """Do nothing."""

    def drop_host_copy(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Forget weights and state."""
        del self._decoder, self._storage


class FinishedStep:
    """A step whose tokens are there."""

    def __init__(self, parts: Sequence[Part], drawn: Draw) -> None:
        self.parts = parts
        self._drawn = drawn

    def wait(self) -> tuple[list[int], dict[int, torch.Tensor]]:
        """Return at once."""
        return self._drawn.tokens.tolist(), self._drawn.logprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedStep:
    """What a model takes on the CPU, padded."""

    batch: StepBatch
    rows: torch.Tensor | None
    """Indices of the rows whose logits are due, then padding; None: all."""
    num_due: int


def prepare(
    parts: Sequence[Part], *, block_tokens: int, previous: PendingStep | None
) -> PreparedStep:
    """Lay out a step; waits for `previous` where it has tokens that only it knows."""
    inputs = build_inputs(parts, block_tokens=block_tokens, previous=awaited_tokens(previous))
    if inputs.awaited is not None and previous is not None:
        known = np.array(previous.wait()[0], dtype=np.int32)
        inputs.token_ids[:] = np.where(inputs.awaited < 0, inputs.token_ids, known[inputs.awaited])
    num_due = len(inputs.due_rows)
    inputs = pad_rows(inputs, padded_rows(inputs.num_rows))
    rows = None
    if num_due < inputs.num_rows:
        rows = padded_index(inputs.due_rows)
    return PreparedStep(batch=to_batch(inputs), rows=rows, num_due=num_due)


def awaited_tokens(previous: PendingStep | None) -> dict[int, int]:
    """Return, by request, the index of its last token among those that a running step will give."""
    if previous is None:
        return {}
    ends = np.cumsum([part.num_due for part in previous.parts]).tolist()
    return {
        part.sequence.id: end - 1
        for part, end in zip(previous.parts, ends, strict=True)
        if part.num_due
    }


def to_batch(inputs: StepInputs) -> StepBatch:
    """Return the inputs as tensors that share the arrays' memory."""
    adapters, precision = inputs.adapters, inputs.precision
    return StepBatch(
        token_ids=torch.from_numpy(inputs.token_ids).long(),
        positions=torch.from_numpy(inputs.positions).long(),
        kv_rows=torch.from_numpy(inputs.kv_rows).long(),
        query_starts=torch.from_numpy(inputs.query_starts),
        context_lens=torch.from_numpy(inputs.context_lens),
        block_tables=torch.from_numpy(inputs.block_tables),
        num_decodes=inputs.num_decodes,
        max_query_rows=inputs.max_query_rows,
        max_context_len=inputs.max_context_len,
        choices=RowChoices(
            adapters=None if adapters is None else torch.from_numpy(adapters).long(),
            precision=precision
            if isinstance(precision, Precision)
            else torch.from_numpy(precision),
        ),
    )


def padded_index(rows: Ints | list[int]) -> torch.Tensor:
    """Return int64 row numbers, row 0 repeated at the end: the output head's matrix product too
    keeps code for every shape.
    """
    index = torch.zeros(padded_rows(len(rows)), dtype=torch.long)
    index[: len(rows)] = torch.as_tensor(rows)
    return index
