"""The encoder engine: embeddings and classification in batches of similar length.

Sequences of all waiting requests form one queue. A step takes the oldest and those nearest to its
length, up to the token budget: little is spent on padding and nobody waits for a full batch.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepseek.core.errors import ContextLengthExceeded, InvalidRequest
from deepseek.core.requests import EncodeRequest, GenerateRequest, ModelLoad
from deepseek.core.wire import Encoded
from deepseek.engine.base import Output, Request
from deepseek.engine.models.encoder import Encoder

LOOK_AHEAD = 256
"""Queued sequences from which a batch is chosen."""
MAX_BATCH = 64


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
            if not 0 < len(sequence) <= self.max_model_len:
                raise ContextLengthExceeded(
                    f"an input has {len(sequence)} tokens; the model takes 1 to "
                    f"{self.max_model_len}",
                    param="input",
                )
            if not all(0 <= token < self._encoder.vocab_size for token in sequence):
                raise InvalidRequest(
                    f"a token id is not in the vocabulary of {self._encoder.vocab_size}",
                    param="input",
                )
        job = _Job(request, [None] * len(request.sequences), len(request.sequences))
        types = request.token_type_ids
        self._queue.extend(
            _Item(job, index, token_ids, None if types is None else types[index])
            for index, token_ids in enumerate(request.sequences)
        )

    def step(self) -> list[Output]:
        """Encode one batch; a request is answered when its last row is there."""
        self._stepping = self._take_batch()
        if not self._stepping:
            return []
        types = [item.type_ids for item in self._stepping]
        rows = self._encoder.encode(
            [item.token_ids for item in self._stepping],
            token_type_ids=[t or [] for t in types] if any(types) else None,
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

    def _take_batch(self) -> list[_Item]:
        """Remove and return the oldest sequence and its nearest in length."""
        if not self._queue:
            return []
        window = [self._queue.popleft() for _ in range(min(LOOK_AHEAD, len(self._queue)))]
        target = len(window[0].token_ids)
        order = sorted(range(len(window)), key=lambda i: abs(len(window[i].token_ids) - target))
        chosen: list[int] = []
        longest = 0
        for i in order:
            joined = max(longest, len(window[i].token_ids))
            full = len(chosen) == MAX_BATCH or joined * (len(chosen) + 1) > self._max_step_tokens
            if chosen and full:
                break
            chosen.append(i)
            longest = joined
        taken = set(chosen)
        self._queue.extendleft(window[i] for i in range(len(window) - 1, -1, -1) if i not in taken)
        return [window[i] for i in chosen]
