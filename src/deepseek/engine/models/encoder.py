"""What the encoder engine asks of a model, and which of the two implementations runs it."""

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch

from deepseek.core.errors import ConfigurationError
from deepseek.engine.linear import LinearFactory, make_linear
from deepseek.engine.models.checkpoint import Checkpoint
from deepseek.engine.models.packed_bert import MODEL_TYPES
from deepseek.engine.models.packed_encoder import PackedEncoder
from deepseek.engine.models.preparation import Preparation
from deepseek.engine.ops.base import Ops
from deepseek.weights.model_directory import ModelDirectory
from deepseek.weights.store.reader import DEFAULT_READING, Reading

if TYPE_CHECKING:
    from deepseek.engine.models.padded_encoder import PaddedEncoder

logger = logging.getLogger(__name__)


class Encoder(Protocol):
    """Token ids in, one float32 row per sequence out."""

    vocab_size: int
    width: int
    """Numbers in a row."""
    num_types: int
    """How many token types (segments) there are; where there is one, types are ignored."""

    def choose(self, lengths: Sequence[int], *, max_tokens: int) -> list[int]:
        """Return the indices of the sequences to encode next, of all that wait, oldest first.

        The oldest is always among them, however long; otherwise they are what costs about as much
        as `max_tokens` tokens. Cheap, changes nothing.
        """
        ...

    def encode(
        self, sequences: Sequence[list[int]], *, type_ids: Sequence[list[int] | None] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return (sequences, width): logits of a classifier, else pooled vectors.

        No sequence is empty. `type_ids`: the tokens' types per sequence; None: all zero.
        """
        ...


def load_encoder(
    directory: ModelDirectory,
    *,
    dtype: torch.dtype,
    device: str,
    ops: Ops,
    linear_factory: LinearFactory = make_linear,
    preparation: Preparation | None = None,
    reading: Reading = DEFAULT_READING,
) -> Encoder:
    """Load a model directory, its weights read as `reading` says.

    `preparation` may spare reading them where `is_packed`.

    Raises `CorruptWeights` where weights are damaged or contradict the config, `UnsupportedModel`
    for a variant that cannot be run.
    """
    packed = is_packed(directory)
    logger.info("%s runs %s", directory.path, "packed" if packed else "padded")
    if not packed:
        cls = _padded_encoder(directory)
        return cls(
            directory, dtype=dtype, device=device, linear_factory=linear_factory, reading=reading
        )
    checkpoint = Checkpoint(
        directory.path,
        dtype=dtype,
        device=device,
        linear_factory=linear_factory,
        preparation=preparation,
        reading=reading,
    )
    return PackedEncoder(directory, checkpoint, ops)


def is_packed(directory: ModelDirectory) -> bool:
    """Say whether our own code runs an encoder; else transformers' does, and reads its weights."""
    return directory.model_type in MODEL_TYPES and not directory.config.get("is_decoder")


def _padded_encoder(directory: ModelDirectory) -> "type[PaddedEncoder]":
    try:
        # Seconds of transformers, which no other model needs.
        from deepseek.engine.models.padded_encoder import PaddedEncoder  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            f"{directory.path}: a model of type {directory.model_type!r} runs in transformers' "
            f"code, which {sys.executable} cannot import ({error}); install transformers there"
        ) from error
    return PaddedEncoder
