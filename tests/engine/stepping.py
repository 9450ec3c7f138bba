"""Runs a decoder over a whole batch from the first token, without an engine around it."""

import torch

from deepseek.engine.batch import NO_CHOICES, LayerKV, RowChoices, StepBatch
from deepseek.engine.models.base import Decoder

BLOCK_TOKENS = 16


def logits(
    decoder: Decoder, sequences: list[list[int]], *, adapters: list[int] | None = None
) -> torch.Tensor:
    """Return each sequence's logits after its last token, (sequences, vocab), in one step."""
    lens = [len(tokens) for tokens in sequences]
    blocks = -(-max(lens) // BLOCK_TOKENS)
    tables = torch.arange(len(sequences) * blocks, dtype=torch.int32).view(len(sequences), blocks)
    firsts = [index * blocks * BLOCK_TOKENS for index in range(len(sequences))]
    starts = torch.tensor([0, *lens]).cumsum(0)
    batch = StepBatch(
        token_ids=torch.tensor([token for tokens in sequences for token in tokens]),
        positions=torch.cat([torch.arange(length) for length in lens]),
        kv_rows=torch.cat(
            [torch.arange(first, first + n) for first, n in zip(firsts, lens, strict=True)]
        ),
        query_starts=starts.int(),
        context_lens=torch.tensor(lens, dtype=torch.int32),
        block_tables=tables,
        num_decodes=0,
        max_query_rows=max(lens),
        max_context_len=max(lens),
        choices=NO_CHOICES
        if adapters is None
        else RowChoices(adapters=torch.tensor(adapters).repeat_interleave(torch.tensor(lens))),
    )
    with torch.inference_mode():
        return decoder.forward(batch, _layers(decoder, tables.numel()), rows=starts[1:] - 1)


def greedy(
    decoder: Decoder, prompts: list[list[int]], count: int, *, adapters: list[int] | None = None
) -> list[list[int]]:
    """Return `count` tokens for each prompt; prompts have two tokens or more."""
    sequences = [list(prompt) for prompt in prompts]
    for _ in range(count):
        drawn = logits(decoder, sequences, adapters=adapters).argmax(dim=-1).tolist()
        for tokens, token in zip(sequences, drawn, strict=True):
            tokens.append(token)
    return [tokens[-count:] for tokens in sequences]


def _layers(decoder: Decoder, num_blocks: int) -> list[LayerKV]:
    shape = decoder.kv_shape
    rows = (num_blocks, shape.num_kv_heads, BLOCK_TOKENS)
    return [
        LayerKV(
            torch.zeros(*rows, shape.key_dim, dtype=shape.dtype),
            torch.zeros(*rows, shape.value_dim, dtype=shape.dtype),
        )
        for _ in range(shape.num_layers)
    ]
