"""Random steps over paged state, with everything that must not be read set to NaN."""

from dataclasses import dataclass, replace

import torch

from deepseek.engine.batch import LayerKV, StepBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of one attention layer."""

    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    block_tokens: int
    values_in_keys: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step and the state it runs over."""

    batch: StepBatch
    kv: LayerKV
    queries: torch.Tensor

    def widened(self) -> "Step":
        """Return a float32 copy, for the reference."""
        keys = self.kv.keys.float()
        inside = self.kv.values.data_ptr() == self.kv.keys.data_ptr()
        width = self.kv.values.shape[3]
        kv = LayerKV(keys, keys[..., :width] if inside else self.kv.values.float())
        return replace(self, kv=kv, queries=self.queries.float())


def random_step(
    rows_and_contexts: list[tuple[int, int]],
    shape: Shape,
    *,
    dtype: torch.dtype,
    device: torch.device,
    num_padding_rows: int = 0,
    seed: int = 0,
) -> Step:
    """Return a step whose sequences bring (rows, context after the step); decodes come first.

    Sequences of context 0 are padding. Slots of the state past a context hold NaN.
    """
    random = torch.Generator().manual_seed(seed)
    size = shape.block_tokens
    num_blocks = [-(-context // size) for _, context in rows_and_contexts]
    max_blocks = max(*num_blocks, 1)
    order = torch.randperm(sum(num_blocks) + 1, generator=random).tolist()
    tables = torch.zeros(len(rows_and_contexts), max_blocks, dtype=torch.int32)
    width = shape.key_dim if shape.values_in_keys else shape.key_dim + shape.value_dim
    state = torch.full((len(order), shape.num_kv_heads, size, width), float("nan"))
    positions: list[int] = []
    kv_rows: list[int] = []
    for index, (rows, context) in enumerate(rows_and_contexts):
        blocks = [order.pop() for _ in range(num_blocks[index])]
        tables[index, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        tables[index, len(blocks) :] = blocks[0] if blocks else 0
        for position in range(context):
            drawn = torch.randn(shape.num_kv_heads, width, generator=random)
            state[blocks[position // size], :, position % size] = drawn
        span = range(context - rows, context) if context else [0] * rows
        positions += span
        kv_rows += [blocks[p // size] * size + p % size if context else -1 for p in span]
    counts = torch.tensor([0, *(rows for rows, _ in rows_and_contexts)])
    positions += [0] * num_padding_rows
    kv_rows += [-1] * num_padding_rows
    batch = StepBatch(
        token_ids=torch.zeros(len(positions), dtype=torch.long, device=device),
        positions=torch.tensor(positions, device=device),
        kv_rows=torch.tensor(kv_rows, device=device),
        query_starts=counts.cumsum(0).int().to(device),
        context_lens=torch.tensor([c for _, c in rows_and_contexts], device=device).int(),
        block_tables=tables.to(device),
        num_decodes=_leading_ones([rows for rows, _ in rows_and_contexts]),
        max_query_rows=max(rows for rows, _ in rows_and_contexts),
        max_context_len=max(context for _, context in rows_and_contexts),
    )
    state = state.to(dtype=dtype, device=device)
    keys = state[..., : shape.key_dim]
    values = state[..., : shape.value_dim] if shape.values_in_keys else state[..., shape.key_dim :]
    queries = torch.randn(len(positions), shape.num_heads, shape.key_dim, generator=random)
    return Step(batch=batch, kv=LayerKV(keys, values), queries=queries.to(device, dtype))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference over the norm of what is expected."""
    difference = actual.float() - expected.float()
    return float(difference.norm() / expected.float().norm())


def _leading_ones(rows: list[int]) -> int:
    return next((index for index, count in enumerate(rows) if count != 1), len(rows))
