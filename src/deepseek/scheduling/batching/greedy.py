"""Take all that waits, at once: the baseline of every other policy."""

import math

from deepseek.core.decisions import Decision
from deepseek.core.load import DeviceLoad, ModelLoad
from deepseek.core.qos import QoS
from deepseek.scheduling.batching.base import Demand, StepLimits, StepPlan, StepShape
from deepseek.scheduling.batching.step_time import (
    StepTimeEstimator,
    decoding_and_context,
    prefill_depth,
)


class GreedyPolicy:
    """Never waits, never reorders; see `deepseek.scheduling.batching.base.BatchingPolicy`.

    What other policies do differently they override: steps that others bound are bounded here.
    """

    def __init__(self, model: str, qos: QoS, limits: StepLimits) -> None:
        """Batch up to `limits`, or up to `qos.max_batch_size` where that is less."""
        self._model = model
        self._qos = qos
        self._limits = limits
        self._estimator = StepTimeEstimator()

    def ready_at(self, demand: Demand) -> float:
        """Start at once."""
        return demand.now_s

    def plan(self, demand: Demand, *, max_step_s: float) -> StepPlan:
        """Take everybody, in order of arrival."""
        return StepPlan(
            max_tokens=self._budget(demand, limit_s=max_step_s), max_sequences=self._max_sequences
        )

    def observe(self, shape: StepShape, *, seconds: float, is_out_of_memory: bool = False) -> None:
        """Learn what steps cost."""
        if not is_out_of_memory:
            self._estimator.observe(shape, seconds)

    def adjust(self, load: ModelLoad, device: DeviceLoad, *, now_s: float) -> list[Decision]:
        """Decide nothing."""
        return []

    def reconfigure(self, qos: QoS) -> None:
        """Take another largest batch."""
        self._qos = qos

    @property
    def _max_sequences(self) -> int:
        most = self._limits.max_sequences
        return min(self._qos.max_batch_size or most, most)

    def _budget(self, demand: Demand, *, limit_s: float) -> int:
        """Return the tokens of a step that takes at most `limit_s`: all that decode, then prompts.

        Decoding sequences are never left out for a bound: their cost is nearly all in the weights,
        which one of them would read as well.
        """
        decoding, context = decoding_and_context(demand.running)
        room = self._limits.max_tokens - decoding
        if room <= 0 or math.isinf(limit_s):
            return self._limits.max_tokens
        prefill = self._estimator.largest_prefill(
            limit_s,
            decoding=decoding,
            context=context,
            most=room,
            depth=prefill_depth(demand.running, demand.waiting, most=room),
        )
        return decoding + prefill
