"""The plug-in point of step policies: entry-point group `deepseek.step_policies`."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from deepseek.core.qos import QoS


class StepPolicy(Protocol):
    """Picks the next model; holds no clock and no reference to engines."""

    def __init__(self, models: Mapping[str, QoS], *, max_step_s: float) -> None:
        """Start with the models of a device; `max_step_s` bounds steps beside a reservation.

        Raises `ConfigurationError` where more than the whole device is reserved.
        """
        ...

    def pick(self, ready: Sequence[str]) -> str:
        """Return the model to step, of those that could; changes only the policy's own state."""
        ...

    def charge(self, model: str, seconds: float) -> None:
        """Account one step's measured device time."""
        ...

    def max_step_s(self, model: str) -> float:
        """Return how long a step of this model may be, for the others' sake; infinite: any."""
        ...

    def reconfigure(self, models: Mapping[str, QoS]) -> None:
        """Take new settings from the next pick on; raises as the constructor, unchanged then."""
        ...
