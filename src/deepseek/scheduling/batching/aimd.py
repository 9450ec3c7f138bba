"""Additive increase, multiplicative decrease of the batch (Clipper, NSDI 2017): a baseline."""

import math

from deepseek.core.decisions import Decision, TimeScale
from deepseek.core.load import DeviceLoad, ModelLoad
from deepseek.core.qos import QoS
from deepseek.scheduling.batching.base import StepLimits
from deepseek.scheduling.batching.greedy import GreedyPolicy

_INCREASE = 2
_DECREASE = 0.75
_FIRST_CAP = 8


class AimdPolicy(GreedyPolicy):
    """Lets the batch grow while deadlines are met, and cuts it when they are not."""

    def __init__(self, model: str, qos: QoS, limits: StepLimits) -> None:
        """Begin with a small batch."""
        super().__init__(model, qos, limits)
        self._cap = _FIRST_CAP

    def adjust(self, load: ModelLoad, device: DeviceLoad, *, now_s: float) -> list[Decision]:
        """Compare waits and step times with the deadlines."""
        qos = self._qos
        is_late = (load.wait_p99_s or 0.0) > qos.ttft_s or (load.step_time_s or 0.0) > qos.itl_s
        before = self._cap
        if is_late:
            self._cap = max(1, math.floor(before * _DECREASE))
        elif load.num_waiting:
            self._cap = min(self._limits.max_sequences, before + _INCREASE)
        if self._cap == before:
            return []
        return [
            Decision(
                at_s=now_s,
                model=self._model,
                scale=TimeScale.MEDIUM,
                action="lower-batch-cap" if is_late else "raise-batch-cap",
                reason=f"the batch cap goes from {before} to {self._cap}: deadlines are "
                f"{'missed' if is_late else 'met, and requests wait'}",
                signals={"wait_p99_s": load.wait_p99_s, "step_time_s": load.step_time_s},
            )
        ]

    @property
    def _max_sequences(self) -> int:
        most = self._limits.max_sequences
        return min(self._cap, self._qos.max_batch_size or most, most)
