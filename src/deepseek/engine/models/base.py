"""What the decoder engine asks of a model family."""

from collections.abc import Sequence
from typing import Protocol

import torch

from deepseek.engine.batch import KVShape, LayerKV, StepBatch
from deepseek.engine.models.checkpoint import Checkpoint
from deepseek.engine.models.projection import Projection
from deepseek.engine.ops.base import Ops


class Decoder(Protocol):
    """A causal language model whose attention state lives outside of it.

    Model code is written in `Ops` and linear layers and takes no decision that depends on a
    tensor's values, so that a step can be captured in a CUDA graph.
    """

    vocab_size: int
    max_positions: int
    kv_shape: KVShape
    projections: Sequence[Projection]
    """The layers that LoRA adapters may change: `Checkpoint.projections`."""

    def __init__(self, checkpoint: Checkpoint, ops: Ops) -> None: ...

    def forward(
        self, batch: StepBatch, layers: Sequence[LayerKV], *, rows: torch.Tensor | None
    ) -> torch.Tensor:
        """Run a step: store its keys and values in `layers`, return logits.

        `rows` are the int64 indices of the rows whose logits are due; None: of all rows. Returns
        (due rows, vocab_size) in the model's number format.
        """
        ...
