"""The encoder engine: embeddings and classification, a batch of waiting sequences a step.

Sequences of all waiting requests form one queue, oldest first. The encoder says which of them make
a batch worth about `max_step_tokens` tokens; the oldest always takes part, so that nobody waits for
a full batch and nobody is passed over for long.
"""

import itertools
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from deepseek.core.errors import ContextLengthExceeded, InvalidRequest
from deepseek.core.load import ModelLoad
from deepseek.core.qos import QoS
from deepseek.core.requests import EncodeRequest, GenerateRequest
from deepseek.core.wire import Encoded
from deepseek.engine.base import Output, Request, StepReport
from deepseek.engine.models.encoder import Encoder
from deepseek.engine.preparing import Writing
from deepseek.scheduling.batching.base import Demand, StepLimits, StepPlan, StepShape, prompt_pairs

LOOK_AHEAD = 512
"""Queued sequences from which a batch is chosen."""


@dataclass(slots=True, eq=False)
class _Job:
    request: EncodeRequest
    rows: list[npt.NDArray[np.float32] | None]
    num_missing: int


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    """One sequence of a request; a `QueuedRequest` to batching policies."""

    job: _Job
    index: int
    token_ids: list[int]
    type_ids: list[int] | None
    arrived_s: float
    due_s: float
    num_pending: int
    """All its tokens: an encoder computes them in one step."""
    num_computed: int = 0

    @property
    def id(self) -> int:
        return self.job.request.id


class EncoderEngine:
    """Steps one encoder; see `deepseek.engine.base.Engine` for the promises."""

    def __init__(self, name: str, encoder: Encoder, *, max_len: int, max_step_tokens: int) -> None:
        self.name = name
        self.max_model_len = max_len
        self._encoder = encoder
        self._max_step_tokens = max_step_tokens
        self._queue: deque[_Item] = deque()
        self._stepping: list[_Item] = []
        self._qos = QoS()
        self.limits = StepLimits(max_tokens=max_step_tokens, max_sequences=LOOK_AHEAD)
        self.last_step: StepReport | None = None
        self.writing: Writing | None = None
        """Prepares the weights for the next load, while there is something to be done."""

    @property
    def has_work(self) -> bool:
        return bool(self._queue)

    @property
    def is_being_prepared(self) -> bool:
        return self.writing is not None and self.writing.is_under_way

    def expect(self, qos: QoS) -> None:
        """Give requests added from now on these deadlines."""
        self._qos = qos

    def demand(self, now_s: float) -> Demand:
        """Show the queue; nothing runs between two steps."""
        return Demand(now_s=now_s, waiting=self._queue, running=())

    def add(self, request: Request, *, now_s: float | None = None) -> None:
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
        arrived_s = time.monotonic() if now_s is None else now_s
        due_s = arrived_s + self._qos.ttft_s
        job = _Job(request, [None] * len(request.sequences), len(request.sequences))
        self._queue.extend(
            _Item(job, index, token_ids, type_ids, arrived_s, due_s, len(token_ids))
            for index, (token_ids, type_ids) in enumerate(
                zip(request.sequences, types, strict=True)
            )
        )

    def step(self, plan: StepPlan | None = None) -> list[Output]:
        """Encode one batch; a request is answered when its last row is there."""
        self._stepping = self._take_batch(plan)
        self.last_step = self._report()
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

    def settle(self) -> None:
        """Do nothing: a step ends with its results."""

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
        if self.writing is not None:
            self.writing.close()
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

    def _take_batch(self, plan: StepPlan | None) -> list[_Item]:
        """Remove from the queue, and return, what the encoder chooses of it."""
        max_tokens, window = self._max_step_tokens, LOOK_AHEAD
        candidates: Sequence[_Item] = self._queue
        if plan is not None:
            max_tokens, window = min(max_tokens, plan.max_tokens), min(window, plan.max_sequences)
            if plan.order is not None:
                candidates = cast("Sequence[_Item]", plan.order)  # shown to it by `demand`
        first = list(itertools.islice(candidates, window))
        if not first:
            return []
        chosen = self._encoder.choose([item.num_pending for item in first], max_tokens=max_tokens)
        taken = [first[i] for i in chosen]
        gone = set(map(id, taken))
        if candidates is self._queue:
            # As it stands, so the rest of a long queue need not be looked at.
            for _ in first:
                self._queue.popleft()
            self._queue.extendleft(item for item in reversed(first) if id(item) not in gone)
        else:
            self._queue = deque(item for item in self._queue if id(item) not in gone)
        return taken

    def _report(self) -> StepReport | None:
        if not self._stepping:
            return None
        num_tokens = sum(item.num_pending for item in self._stepping)
        now_s = time.monotonic()
        return StepReport(
            shape=StepShape(
                num_prefill_tokens=num_tokens,
                num_decoding=0,
                num_context_tokens=num_tokens,
                num_sequences=len(self._stepping),
                # Counted as a prompt's, half of what is computed: so policies predict them.
                num_prefill_pairs=sum(
                    prompt_pairs(item.num_pending, start=0) for item in self._stepping
                ),
            ),
            waits_s=tuple(now_s - item.arrived_s for item in self._stepping),
        )
