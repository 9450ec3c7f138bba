"""Random steps over paged state; whatever an operation must not read is NaN."""

from dataclasses import dataclass

import torch

from deepseek.engine.batch import LayerKV, StepBatch


@dataclass(frozen=True, slots=True)
class Heads:
    """Sizes of one attention layer."""

    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    block_tokens: int = 16
    values_in_keys: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence of a step: the rows it brings and the tokens it has afterwards."""

    rows: int
    context: int


def random_kv(heads: Heads, num_blocks: int, *, dtype: torch.dtype, seed: int = 0) -> LayerKV:
    """Return state whose every element is drawn; keys and values are strided views of one tensor."""
    width = heads.key_dim + (0 if heads.values_in_keys else heads.value_dim)
    random = torch.Generator().manual_seed(seed)
    size = (num_blocks, heads.num_kv_heads, heads.block_tokens, width)
    state = torch.randn(size, generator=random).to(dtype)
    first_value = 0 if heads.values_in_keys else heads.key_dim
    values = state[..., first_value : first_value + heads.value_dim]
    return LayerKV(state[..., : heads.key_dim], values)


def make_batch(
    parts: list[Part], block_tokens: int, *, num_blocks: int, num_padding: int = 0, seed: int = 0
) -> StepBatch:
    """Return a step over blocks dealt at random; parts of context 0 are padding."""
    random = torch.Generator().manual_seed(seed)
    deck = torch.randperm(num_blocks, generator=random).tolist()
    longest = max(part.context for part in parts)
    tables = torch.zeros(len(parts), max(1, -(-longest // block_tokens)), dtype=torch.int32)
    positions: list[int] = []
    kv_rows: list[int] = []
    for index, part in enumerate(parts):
        blocks = [deck.pop() for _ in range(-(-part.context // block_tokens))]
        tables[index, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        for position in range(part.context - part.rows, part.context):
            positions.append(max(position, 0))
            block = blocks[position // block_tokens] if part.context else 0
            row = block * block_tokens + position % block_tokens
            kv_rows.append(row if part.context else -1)
    positions += [0] * num_padding
    kv_rows += [-1] * num_padding
    starts = torch.tensor([0, *(part.rows for part in parts)]).cumsum(0)
    return StepBatch(
        token_ids=torch.zeros(len(positions), dtype=torch.int64),
        positions=torch.tensor(positions),
        kv_rows=torch.tensor(kv_rows),
        query_starts=starts.to(torch.int32),
        context_lens=torch.tensor([part.context for part in parts], dtype=torch.int32),
        block_tables=tables,
        num_decodes=_leading_ones(parts),
        max_query_rows=max(part.rows for part in parts),
        max_context_len=longest,
    )


def poison_unused(kv: LayerKV, batch: StepBatch) -> None:
    """Overwrite every slot of the state that no sequence of the step has filled."""
    used = torch.zeros(kv.keys.shape[0], kv.block_tokens, dtype=torch.bool)
    for table, context in zip(batch.block_tables.tolist(), batch.context_lens.tolist(), strict=True):
        for position in range(context):
            used[table[position // kv.block_tokens], position % kv.block_tokens] = True
    for state in (kv.keys, kv.values):
        state.masked_fill_(~used[:, None, :, None], float("nan"))


def _leading_ones(parts: list[Part]) -> int:
    return next((index for index, part in enumerate(parts) if part.rows != 1), len(parts))
