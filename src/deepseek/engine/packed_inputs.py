"""A step's inputs as one flat array, so that a single copy brings them to the device."""

from dataclasses import dataclass

import numpy as np
import torch

from deepseek.engine.batch import RowChoices, StepBatch
from deepseek.engine.step_inputs import Ints, StepInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLayout:
    """Where each column of a step's inputs lies in the flat array.

    A layout may be larger than the inputs it takes: the rest is filled with padding (see
    `deepseek.engine.batch.StepBatch`).
    """

    num_rows: int
    num_sequences: int
    num_due: int
    table_width: int
    """Blocks of the longest sequence."""
    num_decodes: int
    max_query_rows: int
    max_context_len: int
    has_adapters: bool = False

    @classmethod
    def of(cls, inputs: StepInputs) -> "InputLayout":
        """Return the layout that fits the inputs exactly."""
        num_sequences, table_width = inputs.block_tables.shape
        return cls(
            num_rows=inputs.num_rows,
            num_sequences=num_sequences,
            num_due=max(1, len(inputs.due_rows)),  # shapes stay non-empty where no token is due
            table_width=table_width,
            num_decodes=inputs.num_decodes,
            max_query_rows=inputs.max_query_rows,
            max_context_len=inputs.max_context_len,
            has_adapters=inputs.adapters is not None,
        )

    @classmethod
    def of_decodes(cls, bucket: int, *, max_blocks: int, block_tokens: int) -> "InputLayout":
        """Return the layout of a step that decodes up to `bucket` sequences of any length."""
        return cls(
            num_rows=bucket,
            num_sequences=bucket,
            num_due=bucket,
            table_width=max_blocks,
            num_decodes=bucket,
            max_query_rows=1,
            max_context_len=max_blocks * block_tokens,
        )

    @property
    def size(self) -> int:
        """Elements of the flat array."""
        return sum(map(_aligned, self._sizes))

    @property
    def _sizes(self) -> tuple[int, ...]:
        rows, sequences = self.num_rows, self.num_sequences
        tables = sequences * self.table_width
        return (rows, rows, rows, rows, rows, sequences + 1, sequences, self.num_due, tables)

    def pack(self, inputs: StepInputs, flat: Ints) -> None:
        """Fill `flat` (size,) with the inputs and padding."""
        columns = np.split(flat, np.cumsum([_aligned(size) for size in self._sizes])[:-1])
        columns = [column[:size] for column, size in zip(columns, self._sizes, strict=True)]
        tokens, positions, kv_rows, awaited, adapters, starts, lens, due, tables = columns
        _fill(tokens, inputs.token_ids, 0)
        _fill(positions, inputs.positions, 0)
        _fill(kv_rows, inputs.kv_rows, -1)
        _fill(awaited, inputs.awaited, -1)
        _fill(adapters, inputs.adapters, 0)
        _fill(lens, inputs.context_lens, 0)
        _fill(due, inputs.due_rows, 0)
        # Padding sequences own one padding row each where there is one, else none.
        used = len(inputs.query_starts)
        starts[:used] = inputs.query_starts
        rest = np.arange(1, len(starts) - used + 1) + inputs.num_rows
        starts[used:] = np.minimum(rest, self.num_rows)
        table = tables.reshape(self.num_sequences, self.table_width)
        sequences, width = inputs.block_tables.shape
        table[:sequences, :width] = inputs.block_tables
        table[:sequences, width:] = 0
        table[sequences:] = 0

    def unpack(
        self, flat: torch.Tensor, last_tokens: torch.Tensor
    ) -> tuple[StepBatch, torch.Tensor]:
        """Return the batch and the int64 due rows; tokens still awaited come from `last_tokens`."""
        columns = [
            column[:size]
            for column, size in zip(
                flat.split([_aligned(size) for size in self._sizes]), self._sizes, strict=True
            )
        ]
        tokens, positions, kv_rows, awaited, adapters, starts, lens, due, tables = columns
        known = last_tokens[awaited.clamp(min=0).long()]
        batch = StepBatch(
            token_ids=torch.where(awaited >= 0, known, tokens),
            positions=positions.long(),
            kv_rows=kv_rows.long(),
            query_starts=starts,
            context_lens=lens,
            block_tables=tables.view(self.num_sequences, self.table_width),
            num_decodes=self.num_decodes,
            max_query_rows=self.max_query_rows,
            max_context_len=self.max_context_len,
            choices=RowChoices(adapters=adapters.long() if self.has_adapters else None),
        )
        return batch, due.long()


def _aligned(size: int) -> int:
    """Round up to 16 bytes: Triton compiles a kernel anew for pointers that are not aligned so."""
    return -(-size // 4) * 4


def _fill(column: Ints, values: Ints | None, padding: int) -> None:
    used = 0 if values is None else len(values)
    if values is not None:
        column[:used] = values
    column[used:] = padding
