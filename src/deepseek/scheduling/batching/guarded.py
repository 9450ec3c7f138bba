"""A batching policy that may fail: the built-in one takes over, and the model goes on.

Policies come from other packages too, and are asked between steps of all models of a worker. One
that raises, or breaks its promise, must cost its own model a decision and nobody a step.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from deepseek.core.decisions import Decision, TimeScale
from deepseek.core.load import DeviceLoad, ModelLoad
from deepseek.core.qos import QoS
from deepseek.scheduling.batching.base import (
    BatchingPolicy,
    Demand,
    StepLimits,
    StepPlan,
    StepShape,
)
from deepseek.scheduling.batching.registry import PolicyMaker

logger = logging.getLogger(__name__)

FALLBACK = "slack"

T = TypeVar("T")


class GuardedPolicy:
    """Asks the policy that the QoS names until it fails, then `FALLBACK`; a `BatchingPolicy`.

    What `FALLBACK` itself raises passes through. Another policy is made when the settings name
    another; until then the one that failed is not asked again.
    """

    def __init__(self, qos: QoS, model: str, limits: StepLimits, *, make: PolicyMaker) -> None:
        """Make policies by `make`."""
        self._qos = qos
        self._model = model
        self._limits = limits
        self._make = make
        self._fault: Exception | None = None
        self._is_told = False
        self._policy = self._first_policy()

    def ready_at(self, demand: Demand) -> float:
        """Forward."""
        return self._ask(lambda policy: policy.ready_at(demand))

    def plan(self, demand: Demand, *, max_step_s: float) -> StepPlan:
        """Forward, and hold the plan to what `BatchingPolicy.plan` promises."""

        def plan(policy: BatchingPolicy) -> StepPlan:
            found = policy.plan(demand, max_step_s=max_step_s)
            self._check(found)
            return found

        return self._ask(plan)

    def observe(self, shape: StepShape, *, seconds: float, is_out_of_memory: bool = False) -> None:
        """Forward."""
        self._ask(
            lambda policy: policy.observe(shape, seconds=seconds, is_out_of_memory=is_out_of_memory)
        )

    def adjust(self, load: ModelLoad, device: DeviceLoad, *, now_s: float) -> list[Decision]:
        """Forward, and tell once that another policy has taken over."""
        decisions = list(self._ask(lambda policy: policy.adjust(load, device, now_s=now_s)))
        if self._fault is not None and not self._is_told:
            self._is_told = True
            decisions.append(self._told(self._fault, now_s=now_s))
        return decisions

    def reconfigure(self, qos: QoS) -> None:
        """Forward."""
        self._qos = qos
        effective = qos if self._fault is None else replace(qos, policy=FALLBACK)
        self._ask(lambda policy: policy.reconfigure(effective))

    def _first_policy(self) -> BatchingPolicy:
        try:
            return self._make(self._qos, self._model, self._limits)
        except Exception as error:  # noqa: BLE001 - a plug-in raises what it likes; logged below
            return self._taken_over(error)

    def _ask(self, call: Callable[[BatchingPolicy], T]) -> T:
        try:
            return call(self._policy)
        except Exception as error:  # noqa: BLE001 - a plug-in raises what it likes; logged below
            self._policy = self._taken_over(error)
            return call(self._policy)

    def _taken_over(self, error: Exception) -> BatchingPolicy:
        """Return what decides from now on; raises `error` where that is what has failed."""
        if self._fault is not None or self._qos.policy == FALLBACK:
            raise error
        logger.error(
            "batching policy %r failed for model %s, %r takes over",
            self._qos.policy,
            self._model,
            FALLBACK,
            exc_info=error,
        )
        self._fault = error
        return self._make(replace(self._qos, policy=FALLBACK), self._model, self._limits)

    def _check(self, plan: StepPlan) -> None:
        is_within = (
            1 <= plan.max_tokens <= self._limits.max_tokens
            and 1 <= plan.max_sequences <= self._limits.max_sequences
        )
        if not is_within:
            raise ValueError(
                f"a plan of {plan.max_tokens} tokens in {plan.max_sequences} sequences; at least "
                f"1 in 1 and at most {self._limits.max_tokens} in {self._limits.max_sequences}"
            )

    def _told(self, error: Exception, *, now_s: float) -> Decision:
        return Decision(
            at_s=now_s,
            model=self._model,
            scale=TimeScale.SLOW,
            action="replace-policy",
            reason=f"policy {self._qos.policy} failed ({type(error).__name__}: {error}), "
            f"{FALLBACK} decides on batches until the settings name another",
            signals={"policy": self._qos.policy},
        )
