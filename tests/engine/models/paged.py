"""Steps a decoder over paged state by hand: what the engine does, without one."""

import random
from dataclasses import dataclass, field

import torch

from deepseek.engine.batch import KVShape, LayerKV, StepBatch
from deepseek.engine.models.base import Decoder

BLOCK_TOKENS = 16


@dataclass
class Sequence:
    """One growing sequence; `stored` of its tokens have their state in `blocks`."""

    tokens: list[int]
    stored: int = 0
    blocks: list[int] = field(default_factory=list)

    @property
    def num_pending(self) -> int:
        return len(self.tokens) - self.stored


class PagedState:
    """Blocks handed out in random order; what was never stored is NaN, so that reading it shows."""

    def __init__(self, shape: KVShape, *, num_blocks: int = 64) -> None:
        keys = (shape.num_layers, num_blocks, shape.num_kv_heads, BLOCK_TOKENS, shape.key_dim)
        values = (*keys[:-1], shape.value_dim)
        self._keys = torch.full(keys, torch.nan, dtype=shape.dtype)
        if shape.values_in_keys:
            self._values = self._keys[..., : shape.value_dim]
        else:
            self._values = torch.full(values, torch.nan, dtype=shape.dtype)
        self.layers = [LayerKV(k, v) for k, v in zip(self._keys, self._values, strict=True)]
        self._free = list(range(num_blocks))
        random.Random(3).shuffle(self._free)

    def batch(self, pieces: list[tuple[Sequence, int]], *, padding: int = 0) -> StepBatch:
        """Return a step over the next `size` tokens of each sequence, then padding rows.

        With padding comes one padding sequence. Marks the tokens as stored.
        """
        pieces.sort(key=lambda piece: piece[1] != 1)
        token_ids, positions, kv_rows, starts, lens = [], [], [], [0], []
        for sequence, size in pieces:
            first, end = sequence.stored, sequence.stored + size
            while len(sequence.blocks) * BLOCK_TOKENS < end:
                sequence.blocks.append(self._free.pop())
            for position in range(first, end):
                block, offset = divmod(position, BLOCK_TOKENS)
                kv_rows.append(sequence.blocks[block] * BLOCK_TOKENS + offset)
            token_ids += sequence.tokens[first:end]
            positions += range(first, end)
            starts.append(len(token_ids))
            lens.append(end)
            sequence.stored = end
        tables = [sequence.blocks for sequence, _ in pieces]
        num_decodes = sum(size == 1 for _, size in pieces)
        if padding:
            token_ids, positions = token_ids + [0] * padding, positions + [0] * padding
            kv_rows += [-1] * padding
            starts, lens, tables = [*starts, starts[-1]], [*lens, 0], [*tables, []]
        width = max(map(len, tables))
        return StepBatch(
            token_ids=torch.tensor(token_ids),
            positions=torch.tensor(positions),
            kv_rows=torch.tensor(kv_rows),
            query_starts=torch.tensor(starts, dtype=torch.int32),
            context_lens=torch.tensor(lens, dtype=torch.int32),
            block_tables=torch.tensor(
                [table + [0] * (width - len(table)) for table in tables], dtype=torch.int32
            ),
            num_decodes=num_decodes,
            max_query_rows=max(size for _, size in pieces),
            max_context_len=max(lens),
        )


def greedy_answers(
    decoder: Decoder, prompts: list[list[int]], num_new: int, *, chunk: int, padding: int = 0
) -> list[list[int]]:
    """Answer all prompts in mixed steps: prompts in chunks, one more sequence every other step."""
    state = PagedState(decoder.kv_shape)
    sequences = [Sequence(list(prompt)) for prompt in prompts]
    waiting, running = list(sequences), []
    step = 0
    while waiting or running:
        if waiting and step % 2 == 0:
            running.append(waiting.pop(0))
        step += 1
        pieces = [(sequence, min(chunk, sequence.num_pending)) for sequence in running]
        batch = state.batch(pieces, padding=padding)
        ends = batch.query_starts[1 : len(pieces) + 1].long() - 1
        with torch.inference_mode():
            logits = decoder.forward(batch, state.layers, rows=ends)
        assert logits.shape == (len(pieces), decoder.vocab_size)
        for (sequence, _), token in zip(pieces, logits.argmax(dim=-1).tolist(), strict=True):
            if sequence.num_pending == 0:
                sequence.tokens.append(token)
        running = [
            sequence
            for sequence in running
            if len(sequence.tokens) < len(prompts[sequences.index(sequence)]) + num_new
        ]
    return [s.tokens[len(p) :] for s, p in zip(sequences, prompts, strict=True)]


def full_logits(decoder: Decoder, tokens: list[int]) -> torch.Tensor:
    """Return every position's logits, computed in one step."""
    state = PagedState(decoder.kv_shape)
    batch = state.batch([(Sequence(list(tokens)), len(tokens))])
    with torch.inference_mode():
        return decoder.forward(batch, state.layers, rows=None)
