"""Take all that waits, at once: the baseline of every other policy."""

from deepseek.core.decisions import Decision
from deepseek.core.load import DeviceLoad, ModelLoad
from deepseek.core.qos import QoS
from deepseek.scheduling.batching.base import Demand, StepLimits, StepPlan, StepShape
from deepseek.scheduling.batching.step_time import StepTimeEstimator


class GreedyPolicy:
    """Never waits, never reorders; see `deepseek.scheduling.batching.base.BatchingPolicy`."""

    def __init__(self, model: str, qos: QoS, limits: StepLimits) -> None:
        """Batch up to `limits`, or up to `qos.max_batch_size` where that is less."""
        self._limits = limits
        self._estimator = StepTimeEstimator()
        self._qos = qos

    def ready_at(self, demand: Demand) -> float:
        """Start at once."""
        return demand.now_s

    def plan(self, demand: Demand, *, max_step_s: float) -> StepPlan:
        """Take everybody, in order of arrival."""
        budget = self._estimator.largest_budget(
            max_step_s, demand.running, most=self._limits.max_tokens
        )
        return StepPlan(max_tokens=budget, max_sequences=self._max_sequences)

    def observe(self, shape: StepShape, *, seconds: float, is_out_of_memory: bool = False) -> None:
        """Learn what steps cost, for those that others bound."""
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
        return min(self._qos.max_batch_size or self._limits.max_sequences, self._limits.max_sequences)
