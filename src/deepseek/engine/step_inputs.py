"""A step's parts as arrays on the host, ready to be copied to the device in one piece."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepseek.core.precision import Precision
from deepseek.engine.batch_scheduler import Part

Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """See `deepseek.engine.batch.StepBatch`; besides, which rows yield tokens."""

    token_ids: Ints
    positions: Ints
    kv_rows: Ints
    query_starts: Ints
    context_lens: Ints
    block_tables: Ints
    """(sequences, blocks of the longest)"""
    due_rows: Ints
    """Rows whose logits are due, in the order of the parts."""
    awaited: Ints | None
    """(rows,) index among the previous step's tokens of the row's token, -1 where it is known
    already; None when every token is."""
    adapters: Ints | None
    precision: Precision | Bools
    """As in `deepseek.engine.batch.RowChoices`."""
    num_decodes: int
    max_query_rows: int
    max_context_len: int

    @property
    def num_rows(self) -> int:
        return len(self.token_ids)

    @classmethod
    def empty(cls) -> "StepInputs":
        """Return the inputs of a step without sequences: padded, they are padding alone."""
        none = np.zeros(0, dtype=np.int32)
        return cls(
            token_ids=none,
            positions=none,
            kv_rows=none,
            query_starts=np.zeros(1, dtype=np.int32),
            context_lens=none,
            block_tables=none.reshape(0, 0),
            due_rows=none,
            awaited=None,
            adapters=None,
            precision=Precision.INT8,
            num_decodes=0,
            max_query_rows=0,
            max_context_len=0,
        )


def build_inputs(
    parts: Sequence[Part], *, block_tokens: int, previous: Mapping[int, int]
) -> StepInputs:
    """Lay out the parts, those of a single row first, as `StepBatch` asks.

    `previous` gives, for sequences (by request id) whose last token a running step still computes,
    its index among that step's tokens.
    """
    token_ids: list[int] = []
    due_rows: list[int] = []
    awaited: list[tuple[int, int]] = []
    for part in parts:
        sequence, first = part.sequence, len(token_ids)
        end = part.start + part.num_rows - len(part.draft)
        token_ids.extend(sequence.tokens[part.start : end])
        if end > len(sequence.tokens):
            awaited.append((len(token_ids), previous[sequence.id]))
            token_ids.append(0)
        token_ids.extend(part.draft)
        due_rows.extend(range(first + part.num_rows - part.num_due, first + part.num_rows))
    counts = np.array([part.num_rows for part in parts], dtype=np.int32)
    starts = np.array([part.start for part in parts], dtype=np.int32)
    query_starts = np.zeros(len(parts) + 1, dtype=np.int32)
    np.cumsum(counts, out=query_starts[1:])
    owners = np.repeat(np.arange(len(parts), dtype=np.int32), counts)
    offsets = np.arange(len(owners), dtype=np.int32) - query_starts[owners]
    positions = starts[owners] + offsets
    tables = _tables(parts)
    kv_rows = tables[owners, positions // block_tokens] * block_tokens + positions % block_tokens
    context_lens = starts + counts
    return StepInputs(
        token_ids=np.array(token_ids, dtype=np.int32),
        positions=positions,
        kv_rows=kv_rows,
        query_starts=query_starts,
        context_lens=context_lens,
        block_tables=tables,
        due_rows=np.array(due_rows, dtype=np.int32),
        awaited=_awaited(awaited, len(token_ids)) if awaited else None,
        adapters=_adapters(parts, owners),
        precision=_precision(parts, owners),
        num_decodes=int(np.count_nonzero(counts == 1)),
        max_query_rows=int(counts.max()),
        max_context_len=int(context_lens.max()),
    )


def pad_rows(inputs: StepInputs, num_rows: int) -> StepInputs:
    """Return the inputs with rows added that belong to no sequence and are stored nowhere."""
    missing = num_rows - inputs.num_rows
    if missing <= 0:
        return inputs

    def padded(rows: Ints, value: int) -> Ints:
        return np.concatenate((rows, np.full(missing, value, dtype=np.int32)))

    return StepInputs(
        token_ids=padded(inputs.token_ids, 0),
        positions=padded(inputs.positions, 0),
        kv_rows=padded(inputs.kv_rows, -1),
        query_starts=inputs.query_starts,
        context_lens=inputs.context_lens,
        block_tables=inputs.block_tables,
        due_rows=inputs.due_rows,
        awaited=None if inputs.awaited is None else padded(inputs.awaited, -1),
        adapters=None if inputs.adapters is None else padded(inputs.adapters, 0),
        precision=_padded_precision(inputs.precision, missing),
        num_decodes=inputs.num_decodes,
        max_query_rows=inputs.max_query_rows,
        max_context_len=inputs.max_context_len,
    )


def _tables(parts: Sequence[Part]) -> Ints:
    width = max(len(part.sequence.blocks) for part in parts)
    tables = np.zeros((len(parts), width), dtype=np.int32)
    for row, part in enumerate(parts):
        blocks = part.sequence.blocks
        tables[row, : len(blocks)] = blocks
    return tables


def _awaited(pairs: list[tuple[int, int]], num_rows: int) -> Ints:
    awaited = np.full(num_rows, -1, dtype=np.int32)
    for row, index in pairs:
        awaited[row] = index
    return awaited


def _adapters(parts: Sequence[Part], owners: Ints) -> Ints | None:
    adapters = np.array([part.sequence.adapter_index for part in parts], dtype=np.int32)
    return adapters[owners] if adapters.any() else None


def _precision(parts: Sequence[Part], owners: Ints) -> Precision | Bools:
    """Return one precision wherever all rows have the same: the layers have a shorter way then."""
    chosen = [part.sequence.precision or Precision.INT8 for part in parts]
    if len(set(chosen)) == 1:
        return chosen[0]
    is_int8: Bools = np.array([precision is Precision.INT8 for precision in chosen])
    return is_int8[owners]


def _padded_precision(precision: Precision | Bools, missing: int) -> Precision | Bools:
    if isinstance(precision, Precision):
        return precision
    return np.concatenate((precision, np.zeros(missing, dtype=np.bool_)))
