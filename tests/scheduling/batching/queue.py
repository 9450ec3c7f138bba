"""Requests and a small device with a virtual clock, to drive policies in tests."""

import math
import random
from dataclasses import dataclass, field

from deepseek.scheduling.batching.base import (
    BatchingPolicy,
    Demand,
    StepLimits,
    StepPlan,
    StepShape,
    prompt_pairs,
)

LIMITS = StepLimits(max_tokens=192, max_sequences=64)
MOST_STEPS = 4000
"""More than any load of the tests needs."""


@dataclass(slots=True, eq=False)
class Queued:
    """Implements `QueuedRequest`."""

    id: int
    arrived_s: float = 0.0
    due_s: float = math.inf
    num_pending: int = 20
    num_computed: int = 0
    num_left: int = 4
    """Tokens still to be drawn."""


def step_s(shape: StepShape) -> float:
    """What a step takes: weights, prompts, sequences, attention."""
    return (
        0.01
        + 0.0003 * shape.num_prefill_tokens
        + 0.0009 * shape.num_decoding
        + 1e-6 * shape.num_context_tokens
        + 1e-6 * shape.num_prefill_pairs
    )


@dataclass(slots=True)
class Server:
    """One model's queue on a device of its own."""

    policy: BatchingPolicy
    itl_s: float = math.inf
    limits: StepLimits = LIMITS
    now_s: float = 0.0
    waiting: list[Queued] = field(default_factory=list)
    running: list[Queued] = field(default_factory=list)
    finished: list[Queued] = field(default_factory=list)
    refused: list[Queued] = field(default_factory=list)

    def demand(self) -> Demand:
        return Demand(now_s=self.now_s, waiting=self.waiting, running=self.running)

    def serve(self, coming: list[Queued]) -> int:
        """Take requests as they come, until all have ended; return the number of steps."""
        coming = sorted(coming, key=lambda request: request.arrived_s)
        num_steps = 0
        while coming or self.waiting or self.running:
            while coming and coming[0].arrived_s <= self.now_s:
                self.waiting.append(coming.pop(0))
            if not (self.waiting or self.running):
                self.now_s = coming[0].arrived_s
                continue
            self.step()
            num_steps += 1
            assert num_steps < MOST_STEPS, "somebody waits for ever"
        return num_steps

    def step(self) -> StepPlan:
        """Wait as the policy wants, then run one step as it plans; return the plan."""
        self.now_s = max(self.now_s, self.policy.ready_at(self.demand()))
        plan = self.policy.plan(self.demand(), max_step_s=math.inf)
        self._admit(plan)
        shape, parts = self._shape(plan)
        seconds = step_s(shape)
        self.now_s += seconds
        for request, num_tokens in parts:
            self._advance(request, num_tokens)
        self.policy.observe(shape, seconds=seconds)
        return plan

    def _admit(self, plan: StepPlan) -> None:
        self.refused.extend(r for r in self.waiting if r in plan.refused)
        self.waiting = [r for r in self.waiting if r not in plan.refused]
        for request in list(self.waiting if plan.order is None else plan.order):
            assert isinstance(request, Queued)
            if len(self.running) < min(plan.max_sequences, self.limits.max_sequences):
                self.waiting.remove(request)
                self.running.append(request)

    def _shape(self, plan: StepPlan) -> tuple[StepShape, list[tuple[Queued, int]]]:
        decoding = [r for r in self.running if r.num_pending == 1]
        parts = [(r, 1) for r in decoding]
        budget = plan.max_tokens - len(decoding)
        prefill = pairs = 0
        for request in self.running:
            if request.num_pending > 1 and budget > 0:
                size = min(request.num_pending, budget)
                parts.append((request, size))
                budget -= size
                prefill += size
                pairs += prompt_pairs(size, start=request.num_computed)
        shape = StepShape(
            num_prefill_tokens=prefill,
            num_decoding=len(decoding),
            num_context_tokens=sum(r.num_computed + size for r, size in parts),
            num_sequences=len(parts),
            num_prefill_pairs=pairs,
        )
        return shape, parts

    def _advance(self, request: Queued, num_tokens: int) -> None:
        request.num_computed += num_tokens
        request.num_pending -= num_tokens
        if request.num_pending > 0:
            return
        request.num_pending = 1
        request.num_left -= 1
        request.due_s = self.now_s + self.itl_s
        if request.num_left == 0:
            self.running.remove(request)
            self.finished.append(request)


def taught(
    policy: BatchingPolicy, *, seed: int = 0, num_steps: int = 200, spread: float = 0.0
) -> None:
    """Let a policy see what steps of this device take.

    `spread`: standard deviation of the logarithm of a step's time.
    """
    draws = random.Random(seed)
    for _ in range(num_steps):
        decoding = draws.randint(1, 32)
        prefill = draws.choice([0, 0, 64, 192])
        shape = StepShape(
            num_prefill_tokens=prefill,
            num_decoding=decoding,
            num_context_tokens=decoding * draws.randint(20, 400) + prefill,
            num_sequences=decoding + 1,
            num_prefill_pairs=prompt_pairs(prefill, start=draws.choice([0, 0, 192, 700])),
        )
        policy.observe(shape, seconds=step_s(shape) * draws.lognormvariate(0, spread))
