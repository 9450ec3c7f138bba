"""What arrives, and what a policy sees of it."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request of a workload."""

    at_s: float
    """When a client sent it, after the start."""
    prompt_tokens: int
    output_tokens: int = 1
    """Tokens of the answer; an encoder's request has none of its own and leaves it at 1."""


class SimulatedRequest:
    """A request under way; what policies read of it is `batching.base.QueuedRequest`.

    A plain class with slots: a simulated hour makes tens of thousands, and steps touch all that
    run.
    """

    __slots__ = (
        "arrived_s",
        "due_s",
        "ended_s",
        "first_token_s",
        "has_begun",
        "id",
        "is_failed",
        "is_refused",
        "itl_s",
        "num_blocks",
        "num_computed",
        "num_output",
        "num_pending",
        "output_tokens",
        "prompt_tokens",
        "sent_s",
    )

    def __init__(self, request_id: int, arrival: Arrival) -> None:
        self.id = request_id
        self.sent_s = arrival.at_s
        self.prompt_tokens = arrival.prompt_tokens
        self.output_tokens = arrival.output_tokens
        self.arrived_s = math.nan
        """When the step loop took it: between two steps, as the engine does."""
        self.due_s = math.inf
        self.itl_s = math.inf
        self.num_pending = arrival.prompt_tokens
        self.num_computed = 0
        self.num_output = 0
        self.num_blocks = 0
        """KV blocks that it holds."""
        self.has_begun = False
        self.first_token_s: float | None = None
        self.ended_s: float | None = None
        self.is_refused = False
        self.is_failed = False

    def arrive(self, now_s: float, *, ttft_s: float, itl_s: float) -> None:
        """Enter the queue, with the deadlines that the model promises now."""
        self.arrived_s = now_s
        self.due_s = now_s + ttft_s
        self.itl_s = itl_s
