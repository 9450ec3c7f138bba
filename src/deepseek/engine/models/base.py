"""What the decoder engine asks of a model family."""

from typing import Protocol

import torch

from deepseek.engine.attention import AttentionPlan
from deepseek.engine.kv_cache import KVShape
from deepseek.engine.models.checkpoint import Checkpoint


class Decoder(Protocol):
    """A causal language model whose attention state lives outside of it."""

    num_heads: int
    vocab_size: int
    max_positions: int
    kv_shape: KVShape

    def __init__(self, checkpoint: Checkpoint) -> None: ...

    def hidden(
        self, token_ids: torch.Tensor, positions: torch.Tensor, plan: AttentionPlan
    ) -> torch.Tensor:
        """Return (rows, hidden) for (rows,) ids at (rows,) positions; `plan` keeps the state."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return (rows, vocab_size) float32 logits."""
        ...
