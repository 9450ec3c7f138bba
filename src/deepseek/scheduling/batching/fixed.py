"""A fixed batch and a fixed wait, as dynamic batchers have them (Triton, LitServe): a baseline."""

from deepseek.scheduling.batching.base import Demand, StepPlan
from deepseek.scheduling.batching.greedy import GreedyPolicy


class FixedPolicy(GreedyPolicy):
    """Begins with requests when `min_batch_size` wait or the oldest has waited `max_wait_s`.

    What runs goes on at once; those that wait join it in groups of the same rule.
    """

    def ready_at(self, demand: Demand) -> float:
        """Start when a batch is there, or its first has waited long enough."""
        if demand.running or len(demand.waiting) >= self._batch_size:
            return demand.now_s
        return min(r.arrived_s for r in demand.waiting) + self._qos.max_wait_s

    def plan(self, demand: Demand, *, max_step_s: float) -> StepPlan:
        """Admit a group that is complete or has waited; nobody else."""
        budget = self._budget(demand, limit_s=max_step_s)
        waiting = demand.waiting
        is_due = len(waiting) >= self._batch_size or (
            bool(waiting)
            and demand.now_s >= min(r.arrived_s for r in waiting) + self._qos.max_wait_s
        )
        return StepPlan(
            max_tokens=budget,
            max_sequences=self._max_sequences,
            order=None if is_due or not demand.running else (),
        )

    @property
    def _batch_size(self) -> int:
        return min(self._qos.min_batch_size, self._max_sequences)
