"""The last decisions about each model, for `deepseek why`; they outlive the worker."""

import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from deepseek.core.decisions import Decision

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptDecision:
    """A decision, and when the platform heard of it."""

    decision: Decision
    heard_at: float
    """Unix time; the decision is less than a step older. Its own clock is the worker's."""


class KeptDecisions:
    """One bounded list per model, oldest first."""

    def __init__(self, lengths: Mapping[str, int]) -> None:
        """Keep so many decisions of each model."""
        self._of_model: dict[str, deque[KeptDecision]] = {
            model: deque(maxlen=length) for model, length in lengths.items()
        }

    def add(self, decisions: Iterable[Decision]) -> None:
        """Keep decisions that a worker has told."""
        now = time.time()
        for decision in decisions:
            kept = self._of_model.get(decision.model)
            if kept is None:
                # A policy of another package may write what it likes there.
                logger.warning("a decision about %r, which is no model here", decision.model)
                continue
            kept.append(KeptDecision(decision=decision, heard_at=now))

    def of(self, model: str) -> Sequence[KeptDecision]:
        """Return what is kept about a model, oldest first."""
        return tuple(self._of_model[model])
