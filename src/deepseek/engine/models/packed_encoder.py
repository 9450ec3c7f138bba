"""Encoders that run the sequences of a batch one after another, without padding between them."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import embedding_bag, pad

from deepseek.engine.models.checkpoint import Checkpoint
from deepseek.engine.models.encoder_heads import SentenceHead, has_classifier
from deepseek.engine.models.packed_bert import ClassifierHead, PackedBert, PackedTokens
from deepseek.engine.ops.base import Ops
from deepseek.engine.shapes import padded_rows
from deepseek.weights.model_directory import ModelDirectory


def first_fit(lengths: Sequence[int], *, max_tokens: int) -> list[int]:
    """Return the first length's index, then in order those that fit into what room is left."""
    chosen, room = [0], max_tokens - lengths[0]
    for index in range(1, len(lengths)):
        if room <= 0:
            break
        if lengths[index] <= room:
            chosen.append(index)
            room -= lengths[index]
    return chosen


class PackedEncoder:
    """See `deepseek.engine.models.encoder.Encoder`. A sequence costs its tokens."""

    def __init__(self, directory: ModelDirectory, checkpoint: Checkpoint, ops: Ops) -> None:
        """Read every tensor; raises `CorruptWeights` or `UnsupportedModel`."""
        self._device = checkpoint.device
        self._network = PackedBert(checkpoint, ops)
        self.vocab_size = self._network.vocab_size
        self.num_types = self._network.num_types
        self._head: ClassifierHead | SentenceHead
        if has_classifier(directory):
            self._head = ClassifierHead(checkpoint)
        else:
            hidden = self._network.hidden_size
            self._head = SentenceHead(directory.sentence, hidden=hidden, device=self._device)
        self.width = self._head.width

    def choose(self, lengths: Sequence[int], *, max_tokens: int) -> list[int]:
        """Count tokens only."""
        return first_fit(lengths, max_tokens=max_tokens)

    @torch.inference_mode()
    def encode(
        self, sequences: Sequence[list[int]], *, type_ids: Sequence[list[int] | None] | None = None
    ) -> npt.NDArray[np.float32]:
        """Run all sequences in one forward pass."""
        count = len(sequences)
        # A few row counts serve all batches, for tokens and for sequences: see `padded_rows`.
        num_padding = padded_rows(count) - count
        lengths = np.fromiter(map(len, sequences), np.int64, count)
        batch = self._pack(sequences, lengths, type_ids)
        starts = batch.starts[:count]
        if self._head.pooling == "cls":
            rows = self._network.forward(batch, rows=pad(starts.long(), (0, num_padding)))
        else:
            states = self._network.forward(batch)
            num_tokens = int(lengths.sum())
            rows = _reduce(states, starts, self._head.pooling, num_tokens=num_tokens)
            rows = pad(rows, (0, 0, 0, num_padding))
        return np.asarray(self._head.forward(rows)[:count].float().cpu().numpy())

    def _pack(
        self,
        sequences: Sequence[list[int]],
        lengths: npt.NDArray[np.int64],
        type_ids: Sequence[list[int] | None] | None,
    ) -> PackedTokens:
        num_tokens = int(lengths.sum())
        num_padding = padded_rows(num_tokens) - num_tokens
        token_ids = np.fromiter(chain.from_iterable(sequences), np.int64, num_tokens)
        types = None
        if type_ids is not None and self.num_types > 1:
            filled = (
                row or [0] * length for row, length in zip(type_ids, lengths.tolist(), strict=True)
            )
            types = np.fromiter(chain.from_iterable(filled), np.int64, num_tokens)
        places = self._network.places(token_ids, lengths, types)
        starts = np.concatenate(([0], np.cumsum(lengths)))
        if num_padding:  # a sequence of its own, that nobody reads
            starts = np.append(starts, num_tokens + num_padding)
            token_ids, places = (
                np.pad(token_ids, (0, num_padding)),
                np.pad(places, (0, num_padding)),
            )
        return PackedTokens(
            token_ids=torch.from_numpy(token_ids).to(self._device),
            places=torch.from_numpy(places).to(self._device),
            starts=torch.from_numpy(starts.astype(np.int32)).to(self._device),
            max_len=max(int(lengths.max()), num_padding),
        )


def _reduce(
    states: torch.Tensor, starts: torch.Tensor, pooling: str, *, num_tokens: int
) -> torch.Tensor:
    """Return the mean or maximum over each sequence's rows, (sequences, width) in float32."""
    # An "embedding bag" whose table is the states: the segment reduction of torch that neither
    # adds atomically on GPUs nor takes five times as long on CPUs.
    indices = torch.arange(num_tokens, dtype=starts.dtype, device=starts.device)
    return embedding_bag(indices, states.float(), starts, mode=pooling)
