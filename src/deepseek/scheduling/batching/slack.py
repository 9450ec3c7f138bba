"""The default policy: as much in a step as the least slack allows, and no step before it pays.

The control law has three time scales; this is the fast one, `load_control` has the others.

* A step takes prompts up to the token budget whose predicted time still fits the least time left
  to any deadline (Sarathi-Serve, arXiv:2403.02310, with the chunk sized by slack as in Niyama,
  arXiv:2503.22562).
* Requests are admitted earliest deadline first. Where not all can meet their deadlines, the longest
  prompts give way until the others can (see `lateness`): they go after all that can, one at a time
  and by response ratio, or are refused. Serving them first would make more late.
* Where deadlines leave slack and `max_wait_s` allows it, a step is held back until just before it
  must start: sequences share steps that each would have paid for alone, and the device's time goes
  to other models.

Without deadlines it is the greedy policy, bounded by what the sharing of the device allows.
"""

import math
from collections.abc import Iterable, Sequence
from operator import attrgetter

from deepseek.core.decisions import Decision
from deepseek.core.load import DeviceLoad, ModelLoad
from deepseek.core.qos import LateRequests, QoS
from deepseek.scheduling.batching.base import (
    Demand,
    QueuedRequest,
    StepLimits,
    StepPlan,
    StepShape,
)
from deepseek.scheduling.batching.greedy import GreedyPolicy
from deepseek.scheduling.batching.lateness import Pace, split_late
from deepseek.scheduling.batching.load_control import LoadControl, Mode
from deepseek.scheduling.batching.step_time import (
    MIN_CHUNK_TOKENS,
    decoding_and_context,
    prefill_depth,
)

_TIMER_S = 0.002
"""A wait may end so much late."""
_ITL_RESERVE = 0.08
"""Part of the promised time between tokens that is never waited away: an answer of few tokens has
no later one to make up for a late step."""
_DECODE_PART = 0.75
"""Part of the promised time between tokens that decoding may take; the rest is for prompts."""
_HELD_PART = 0.1
"""Part of the batch cap from which on no step is held back."""
_LOST_PART = 1 / 2
"""Part of the batch cap that requests which are late already may take, where nobody in time waits;
the rest is for who comes meanwhile. Less (a sixteenth) brings half a point more in time under
overload, and lets the late ones of a burst wait a third longer."""
_OVERLOAD_RESERVE = 1.1
"""In overload more requests come before a prompt is computed than are counted now."""
_LEAST_SAVING = 0.05
"""Part of a step that is fixed, below which sharing steps saves too little to wait for."""

_due_s = attrgetter("due_s")


class SlackPolicy(GreedyPolicy):
    """See the module; `deepseek.scheduling.batching.base.BatchingPolicy` has the promises."""

    def __init__(self, model: str, qos: QoS, limits: StepLimits) -> None:
        """Begin in mode normal, with nothing known of what steps cost."""
        super().__init__(model, qos, limits)
        self._control = LoadControl(model, qos, limits)
        self._held_since_s: float | None = None
        self._lost: set[int] = set()
        """Requests that were late when they were admitted: nobody hurries for them."""

    def ready_at(self, demand: Demand) -> float:
        """Return the latest start that still meets every deadline, where waiting pays."""
        now_s, qos = demand.now_s, self._qos
        if self._held_since_s is None:
            self._held_since_s = now_s
        if qos.max_wait_s <= 0 or not self._may_hold(demand):
            return now_s
        waiting, running = demand.waiting, demand.running
        latest_s = math.inf
        if waiting:
            oldest_s = min(waiting[0].arrived_s, waiting[-1].arrived_s)
            latest_s = oldest_s + qos.max_wait_s
            if qos.strict and not running:
                return now_s if len(waiting) >= qos.min_batch_size else latest_s
        if running:
            # Answers that take longer hold their places longer: the fuller, the less time is spent.
            free = 1 - (len(waiting) + len(running)) / (_HELD_PART * self._control.cap)
            latest_s = min(latest_s, self._held_since_s + qos.max_wait_s * max(0.0, free))
        if now_s >= latest_s:
            return now_s
        decoding, context = decoding_and_context(running)
        prefill = min(
            self._limits.max_tokens,
            sum(r.num_pending for r in waiting) + sum(r.num_pending for r in running) - decoding,
        )
        step_s = self._predict_safe(
            prefill=prefill,
            decoding=decoding,
            context=context + prefill,
            depth=prefill_depth(running, waiting, most=self._limits.max_tokens),
        )
        least_due_s = min(
            min((r.due_s for r in running if r.id not in self._lost), default=math.inf),
            min((r.due_s for r in waiting), default=math.inf),
        )
        timer_s = max(_TIMER_S, min(_ITL_RESERVE * qos.itl_s, qos.max_wait_s))
        return max(now_s, min(latest_s, least_due_s - step_s - timer_s))

    def plan(self, demand: Demand, *, max_step_s: float) -> StepPlan:
        """Order the queue, and size the step by the least slack."""
        self._held_since_s = None
        now_s, running = demand.now_s, demand.running
        if self._lost:
            self._lost.intersection_update(r.id for r in running)
        decoding, context = decoding_and_context(running)
        slack_s = self._least_slack(running, now_s) / (1 + self._control.margin)
        floor_s = self._predict(prefill=MIN_CHUNK_TOKENS, decoding=decoding, context=context)
        limit_s = min(max_step_s, max(slack_s, floor_s))
        # One token that is nearly due makes this step short, not those after it.
        usual_s = min(max_step_s, max(slack_s, self._qos.itl_s / (1 + self._control.margin)))
        order, late = self._ordered(
            demand, decoding=decoding, context=context, limit_s=max(usual_s, limit_s)
        )
        if math.isfinite(slack_s) and not late and self._fits_one_step(order):
            # Nobody waits for long: rather a smaller step than a token that comes late.
            limit_s = min(max_step_s, max(slack_s / self._estimator.spread, floor_s))
        refused: Sequence[QueuedRequest] = ()
        if late and self._qos.late is LateRequests.REFUSE:
            refused = late
        elif late and not order and self._has_time_for_late(running):
            # The highest response ratio next: short ones soon, long ones not never.
            order = [max(late, key=lambda r: (now_s - r.arrived_s) / r.num_pending)]
            self._lost.add(order[0].id)
        if order and math.isinf(max_step_s) and not decoding and math.isfinite(order[0].due_s):
            # Nobody decodes: the first answer due bounds how much is done together with it.
            first_s = (order[0].due_s - now_s) / (1 + self._control.margin)
            prompt = order[0].num_pending
            own_s = self._predict(prefill=prompt, decoding=0, context=0, depth=prompt / 2)
            limit_s = min(limit_s, max(first_s, own_s))
        return StepPlan(
            max_tokens=self._budget(demand, limit_s=limit_s / self._control.derating),
            max_sequences=self._most_running(context=context, max_step_s=max_step_s),
            order=order if demand.waiting else None,
            refused=refused,
        )

    def observe(self, shape: StepShape, *, seconds: float, is_out_of_memory: bool = False) -> None:
        """Learn what steps cost; halve the batch where memory ran out."""
        super().observe(shape, seconds=seconds, is_out_of_memory=is_out_of_memory)
        if is_out_of_memory:
            self._control.note_out_of_memory()

    def adjust(self, load: ModelLoad, device: DeviceLoad, *, now_s: float) -> list[Decision]:
        """Leave the medium and slow loops to `LoadControl`."""
        return self._control.adjust(load, device, now_s=now_s)

    def reconfigure(self, qos: QoS) -> None:
        """Take new settings; what has been learned of steps and load stays."""
        super().reconfigure(qos)
        self._control.qos = qos

    # the queue

    def _ordered(
        self, demand: Demand, *, decoding: int, context: int, limit_s: float
    ) -> tuple[Sequence[QueuedRequest], list[QueuedRequest]]:
        """Return the waiting requests by deadline: those that can meet it, and those that cannot.

        Prompts are computed at the pace of steps that take `limit_s` at most.
        """
        waiting = demand.waiting
        if not waiting or math.isinf(self._qos.ttft_s):
            return waiting, []  # as it is: it may be long, and is asked for before every step
        queue = sorted(waiting, key=_due_s)
        if self._estimator.num_observed == 0:
            return queue, []
        room = max(1, self._limits.max_tokens - decoding)
        chunk = self._estimator.largest_prefill(
            limit_s,
            decoding=decoding,
            context=context,
            most=room,
            depth=prefill_depth(demand.running, queue, most=room),
        )
        full_s = self._predict(prefill=chunk, decoding=decoding, context=context + chunk)
        alone_s = self._predict(prefill=0, decoding=decoding, context=context)
        reserve = 1 + self._control.margin
        if self._control.mode is Mode.OVERLOAD:
            reserve *= _OVERLOAD_RESERVE
        return split_late(
            queue,
            Pace(
                chunk=chunk,
                step_s=reserve * alone_s,
                per_token_s=reserve * max(0.0, full_s - alone_s) / chunk,
                per_pair_s=reserve * self._estimator.per_pair_s * self._control.derating,
                place_s=self._control.place_s,
            ),
            now_s=demand.now_s,
            ahead=sum(r.num_pending for r in demand.running if r.num_pending > 1),
            num_places=self._control.cap - len(demand.running),
        )

    def _least_slack(self, running: Sequence[QueuedRequest], now_s: float) -> float:
        """Return the least time left to a token of those that decode and are not lost."""
        if math.isinf(self._qos.itl_s) or not running:
            return math.inf
        lost = self._lost
        due = (r.due_s for r in running if r.num_pending == 1 and r.id not in lost)
        return min(due, default=math.inf) - now_s

    def _fits_one_step(self, order: Iterable[QueuedRequest]) -> bool:
        return sum(r.num_pending for r in order) < self._limits.max_tokens

    def _has_time_for_late(self, running: Sequence[QueuedRequest]) -> bool:
        """Say whether one more late request may begin: each is in the way of those in time.

        One prompt at a time: who comes meanwhile waits for all that has begun.
        """
        lost = self._lost
        if len(lost) >= self._most_lost:
            return False
        return not lost or not any(r.num_pending > 1 and r.id in lost for r in running)

    def _most_running(self, *, context: int, max_step_s: float) -> int:
        """Return how many may run so that decoding is short enough, and leaves time for prompts."""
        cap = self._control.cap
        limit_s = min(max_step_s, self._qos.itl_s * _DECODE_PART)
        per_sequence_s = self._estimator.per_decoding_s * self._control.derating
        if math.isinf(limit_s) or per_sequence_s <= 0:
            return cap
        fixed_s = self._predict(prefill=0, decoding=0, context=context)
        return max(1, min(cap, int((limit_s - fixed_s) / per_sequence_s)))

    @property
    def _most_lost(self) -> int:
        return max(1, int(self._control.cap * _LOST_PART))

    # holding back

    def _may_hold(self, demand: Demand) -> bool:
        """Say whether a fuller step later saves enough to wait for it."""
        qos = self._qos
        if qos.strict:
            return True
        if not self._control.may_hold:
            return False
        present = len(demand.waiting) + len(demand.running)
        if present >= self._control.cap or (1 < qos.min_batch_size <= present):
            return False
        if math.isinf(qos.ttft_s) and qos.min_batch_size == 1:
            return False
        decoding, context = decoding_and_context(demand.running)
        prefill = sum(r.num_pending for r in demand.waiting)
        if prefill >= self._limits.max_tokens:
            return False
        step_s = self._predict(
            prefill=prefill,
            decoding=decoding,
            context=context,
            depth=prefill_depth(demand.running, demand.waiting, most=self._limits.max_tokens),
        )
        return self._estimator.fixed_s >= _LEAST_SAVING * step_s

    # predictions

    def _predict(self, *, prefill: int, decoding: int, context: int, depth: float = 0.0) -> float:
        expected_s = self._estimator.predict(
            prefill=prefill, decoding=decoding, context=context, depth=depth
        )
        return expected_s * self._control.derating

    def _predict_safe(self, *, prefill: int, decoding: int, context: int, depth: float) -> float:
        safe_s = self._estimator.predict_safe(
            prefill=prefill, decoding=decoding, context=context, depth=depth
        )
        return safe_s * self._control.derating * (1 + self._control.margin)
