"""The encoder engine: embeddings and classification, a batch of waiting sequences a step.

Sequences of all waiting requests form one queue, oldest first. The encoder says which of them make
a batch worth about `max_step_tokens` tokens; the oldest always takes part, so that nobody waits for
a full batch and nobody is passed over for long.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepseek.core.errors import ContextLengthExceeded, InvalidRequest
from deepseek.core.load import ModelLoad
from deepseek.core.requests import EncodeRequest, GenerateRequest
from deepseek.core.wire import Encoded
from deepseek.engine.base import Output, Request
from deepseek.engine.models.encoder import Encoder

LOOK_AHEAD = 512
"""Queued sequences from which a batch is chosen."""


@dataclass(slots=True, eq=False)
class _Job:
    request: EncodeRequest
    rows: list[npt.NDArray[np.float32] | None]
    num_missing: int


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    job: _Job
    index: int
    token_ids: list[int]
    type_ids: list[int] | None


class EncoderEngine:
    """Steps one encoder; see `deepseek.engine.base.Engine` for the promises."""

    def __init__(self, name: str, encoder: Encoder, *, max_len: int, max_step_tokens: int) -> None:
        self.name = name
        self.max_model_len = max_len
        self._encoder = encoder
        self._max_step_tokens = max_step_tokens
        self._queue: deque[_Item] = deque()
        self._stepping: list[_Item] = []

    @property
    def has_work(self) -> bool:
        return bool(self._queue)

    def add(self, request: Request) -> None:
        """Check the sequences and queue them."""
        if isinstance(request, GenerateRequest):
            raise InvalidRequest(f"model {self.name!r} encodes; it does not generate")
        if not request.sequences:
            raise InvalidRequest("there is nothing to encode", param="input")
        for sequence in request.sequences:
            self._check(sequence)
        types: Sequence[list[int] | None] = [None] * len(request.sequences)
        if request.token_type_ids is not None:
            self._check_types(request.token_type_ids, request.sequences)
            types = request.token_type_ids
        job = _Job(request, [None] * len(request.sequences), len(request.sequences))
        self._queue.extend(
            _Item(job, index, token_ids, type_ids)
            for index, (token_ids, type_ids) in enumerate(
                zip(request.sequences, types, strict=True)
            )
        )

    def step(self) -> list[Output]:
        """Encode one batch; a request is answered when its last row is there."""
        self._stepping = self._take_batch()
        if not self._stepping:
            return []
        types = [item.type_ids for item in self._stepping]
        rows = self._encoder.encode(
            [item.token_ids for item in self._stepping],
            type_ids=types if any(map(any, filter(None, types))) else None,
        )
        outputs: list[Output] = []
        for item, row in zip(self._stepping, rows, strict=True):
            job = item.job
            job.rows[item.index] = row
            job.num_missing -= 1
            if job.num_missing == 0:
                table = np.stack([row for row in job.rows if row is not None])
                outputs.append(
                    Encoded(job.request.id, len(job.rows), table.shape[1], table.tobytes())
                )
        self._stepping = []
        return outputs

    def abort(self, request_id: int) -> None:
        """Drop a request's sequences from the queue."""
        self._queue = deque(i for i in self._queue if i.job.request.id != request_id)

    def fail_running(self) -> list[int]:
        """Drop the requests of the last batch, also their sequences still queued."""
        failed = {item.job.request.id for item in self._stepping}
        self._stepping = []
        self._queue = deque(i for i in self._queue if i.job.request.id not in failed)
        return sorted(failed)

    def load(self) -> ModelLoad:
        """Count queued sequences; an encoder keeps no attention state."""
        return ModelLoad(
            model=self.name,
            num_waiting=len(self._queue),
            num_running=len(self._stepping),
            kv_tokens_used=0,
            kv_tokens_cached=0,
            kv_tokens_capacity=0,
        )

    def close(self) -> None:
        """Forget the queue and the weights."""
        self._queue.clear()
        del self._encoder

    def _check(self, sequence: list[int]) -> None:
        if not 0 < len(sequence) <= self.max_model_len:
            raise ContextLengthExceeded(
                f"an input has {len(sequence)} tokens; the model takes 1 to {self.max_model_len}",
                param="input",
            )
        if min(sequence) < 0 or max(sequence) >= self._encoder.vocab_size:
            raise InvalidRequest(
                f"a token id is not in the vocabulary of {self._encoder.vocab_size}", param="input"
            )

    def _check_types(self, type_ids: list[list[int]], sequences: list[list[int]]) -> None:
        if list(map(len, type_ids)) != list(map(len, sequences)):
            raise InvalidRequest("there must be one token type for each token", param="input")
        num_types = self._encoder.num_types
        if num_types > 1 and not all(0 <= t < num_types for row in type_ids for t in row):
            raise InvalidRequest(f"a token type is not below {num_types}", param="input")

    def _take_batch(self) -> list[_Item]:
        """Remove from the queue, and return, what the encoder chooses of it."""
        if not self._queue:
            return []
        window = [self._queue.popleft() for _ in range(min(LOOK_AHEAD, len(self._queue)))]
        chosen = self._encoder.choose(
            [len(item.token_ids) for item in window], max_tokens=self._max_step_tokens
        )
        taken = set(chosen)
        self._queue.extendleft(window[i] for i in range(len(window) - 1, -1, -1) if i not in taken)
        return [window[i] for i in chosen]
