"""Quality of service of one model, as the deployment file declares it and policies read it."""

import math
from dataclasses import dataclass
from enum import StrEnum


class Priority(StrEnum):
    """Who goes first, most urgent first. Order counts only within what reservations leave open."""

    CRITICAL = "critical"
    """Inside its reservation, goes ahead of every other model at the next step boundary."""
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class LateRequests(StrEnum):
    """What becomes of a waiting request that can no longer meet its deadline."""

    RELEGATE = "relegate"
    """It is served after those that still can (Niyama, arXiv:2503.22562)."""
    REFUSE = "refuse"
    """It is answered at once with 503 and Retry-After."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QoS:
    """What a model is promised and how it batches."""

    priority: Priority = Priority.NORMAL
    reserved_share: float = 0.0
    """Guaranteed part of the device's time while the model has work, from 0 to 1."""
    weight: float = 1.0
    """Part in the time that no reservation uses, beside the other models' weights."""
    policy: str = "slack"
    """Name of the batching policy (`deepseek.batching_policies`)."""
    min_batch_size: int = 1
    """Sequences that a step waits for: while slack allows, or, under `strict`, always."""
    max_batch_size: int | None = None
    """Sequences that a step holds at most; None: the pool's limit."""
    max_wait_s: float = 0.0
    """Longest time that work is held back by choice, to batch better."""
    strict: bool = False
    """Hold `min_batch_size` until `max_wait_s` whatever the deadlines say."""
    ttft_s: float = math.inf
    """Deadline of a request's first token, or of an encoder's answer, after its arrival."""
    itl_s: float = math.inf
    """Mean time between the tokens of an answer that is still in time."""
    late: LateRequests = LateRequests.RELEGATE
