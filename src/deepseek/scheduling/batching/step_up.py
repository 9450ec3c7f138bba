"""The rule `step-up`: a batch of 32 becomes 64 after five long waits in a row, and goes back."""

from deepseek.core.decisions import Decision, TimeScale
from deepseek.core.load import DeviceLoad, ModelLoad
from deepseek.core.qos import QoS
from deepseek.scheduling.batching.base import StepLimits
from deepseek.scheduling.batching.greedy import GreedyPolicy

LOW_CAP, HIGH_CAP = 32, 64
DEFAULT_THRESHOLD_S = 0.2
"""Where `qos.max_wait_s` names no other."""
IN_A_ROW = 5


class StepUpPolicy(GreedyPolicy):
    """Counts reports in which the oldest request has waited longer than the threshold."""

    def __init__(self, model: str, qos: QoS, limits: StepLimits) -> None:
        """Begin with the low cap."""
        super().__init__(model, qos, limits)
        self._is_up = False
        self._num_long = self._num_short = 0

    def adjust(self, load: ModelLoad, device: DeviceLoad, *, now_s: float) -> list[Decision]:
        """Step up after five long waits in a row, down after five short ones."""
        threshold_s = self._qos.max_wait_s or DEFAULT_THRESHOLD_S
        wait_s = load.oldest_wait_s or 0.0
        is_long = wait_s > threshold_s
        self._num_long = self._num_long + 1 if is_long else 0
        self._num_short = 0 if is_long else self._num_short + 1
        if not self._is_up and self._num_long >= IN_A_ROW:
            self._is_up = True
            action, change = "raise-batch-cap", f"from {LOW_CAP} to {HIGH_CAP}"
            why = f"the oldest request had waited over {threshold_s:g} s"
        elif self._is_up and self._num_short >= IN_A_ROW:
            self._is_up = False
            action, change = "lower-batch-cap", f"from {HIGH_CAP} to {LOW_CAP}"
            why = f"nobody had waited over {threshold_s:g} s"
        else:
            return []
        return [
            Decision(
                at_s=now_s,
                model=self._model,
                scale=TimeScale.MEDIUM,
                action=action,
                reason=f"the batch cap goes {change}: {IN_A_ROW} times in a row {why}",
                signals={"oldest_wait_s": load.oldest_wait_s},
            )
        ]

    @property
    def _max_sequences(self) -> int:
        most = self._limits.max_sequences
        cap = HIGH_CAP if self._is_up else LOW_CAP
        return min(cap, self._qos.max_batch_size or most, most)
