"""What one step of a decoder runs over: rows of tokens, and where their attention state lies.

Attention state is paged: a sequence owns blocks of `block_tokens` rows, named by its block table.
Everything a model or a kernel needs to know of a step is in `StepBatch`, as tensors on the device.
"""

from dataclasses import dataclass

import torch

from deepseek.core.precision import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class KVShape:
    """Size of one model's attention state."""

    num_layers: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    values_in_keys: bool = False
    """True where the values are the first `value_dim` elements of the keys (multi-head latent
    attention keeps one latent vector per token): only keys are stored."""

    @property
    def token_bytes(self) -> int:
        """Bytes of one token over all layers."""
        width = self.key_dim + (0 if self.values_in_keys else self.value_dim)
        return self.num_layers * self.num_kv_heads * width * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class LayerKV:
    """One layer's paged attention state; the last dimension is contiguous."""

    keys: torch.Tensor
    """(blocks, kv_heads, block_tokens, key_dim)"""
    values: torch.Tensor
    """(blocks, kv_heads, block_tokens, value_dim); may be a view of `keys`."""

    @property
    def block_tokens(self) -> int:
        return self.keys.shape[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowChoices:
    """What the rows of a step choose, each for itself, in a model's linear layers."""

    adapters: torch.Tensor | None = None
    """(rows,) int64 index of each row's LoRA adapter, 0 for none; None when no row has one."""
    precision: Precision | torch.Tensor = Precision.INT8
    """What layers of several precisions compute in: one for all rows, or (rows,) bool, true where
    INT8. Other layers do not look at it."""

    def of(self, rows: torch.Tensor | slice) -> "RowChoices":
        """Return the choices of these rows, in this order."""
        adapters, precision = self.adapters, self.precision
        return RowChoices(
            adapters=None if adapters is None else adapters[rows],
            precision=precision[rows] if isinstance(precision, torch.Tensor) else precision,
        )


NO_CHOICES = RowChoices()
"""No adapter in any row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """The rows of one step. Rows of one sequence are consecutive; sequences that bring a single row
    (decoding ones) come first.

    A causal step: of a sequence with n rows and `context_lens` c, row i (0-based) sits at position
    c - n + i and sees the keys of positions 0 to c - n + i. Rows beyond `query_starts[-1]`, and
    sequences with a context of 0, are padding: they are computed, stored nowhere, and give zeros or
    garbage, never NaN in others' rows.
    """

    token_ids: torch.Tensor
    """(rows,) int64"""
    positions: torch.Tensor
    """(rows,) int64"""
    kv_rows: torch.Tensor
    """(rows,) int64: `block * block_tokens + offset` of the row's keys and values; -1: none."""
    query_starts: torch.Tensor
    """(sequences + 1,) int32: first row of each sequence, then the number of rows."""
    context_lens: torch.Tensor
    """(sequences,) int32: tokens of each sequence after this step."""
    block_tables: torch.Tensor
    """(sequences, max_blocks) int32; entries past a sequence's context are any valid blocks."""
    num_decodes: int
    """How many sequences, from the first, have exactly one row."""
    max_query_rows: int
    """Rows of the sequence that has most."""
    max_context_len: int
    choices: RowChoices = NO_CHOICES

    @property
    def num_rows(self) -> int:
        return self.token_ids.shape[0]

    def of_rows(self, rows: torch.Tensor) -> "StepBatch":
        """Return the batch in which each of the int64 `rows` stands alone.

        For what comes after the keys have been stored: each row is a sequence of one row, with
        the context that it sees in this batch.
        """
        count = rows.shape[0]
        positions = self.positions[rows]
        owners = torch.searchsorted(self.query_starts, rows.to(torch.int32), right=True) - 1
        return StepBatch(
            token_ids=self.token_ids[rows],
            positions=positions,
            kv_rows=self.kv_rows[rows],
            query_starts=torch.arange(count + 1, dtype=torch.int32, device=rows.device),
            context_lens=(positions + 1).to(torch.int32),
            block_tables=self.block_tables[owners],
            num_decodes=count,
            max_query_rows=1,
            max_context_len=self.max_context_len,
            choices=self.choices.of(rows),
        )
