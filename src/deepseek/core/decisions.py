"""What a batching policy changed, and why: told by the worker, kept and shown by the platform."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class TimeScale(StrEnum):
    """Which loop decided."""

    MEDIUM = "medium"
    SLOW = "slow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A change that a policy made, with what it saw."""

    at_s: float
    """On the clock of the calls that led to it."""
    model: str
    scale: TimeScale
    action: str
    """Stable word: `raise-batch-cap`, `cap-admission`, ..."""
    reason: str
    """One plain sentence for `deepseek why`."""
    signals: dict[str, Any] = field(default_factory=dict)
    """The signals that decided, by name."""
