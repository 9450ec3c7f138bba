"""Start-time fair queueing over measured device time, with reservations.

Each model has a virtual time that grows by `seconds / weight`; of those with work, the least goes
next (Goyal et al., SIGCOMM 1996). Weights are parts of the device: a reservation is its own; what
no reservation takes is split among the models without one, by `QoS.weight` and priority. While a
model has work it is served at least its part of the time, less its own longest step and one of each
of the others; what some do not use goes to whoever has work; being idle earns nothing.

Critical models with a reservation queue apart and go ahead of all others. Together they keep a
credit, the time they were given beyond their reservations since they began to have work, and
another model steps only while there is credit; its step may take more, which is paid back before
the next one. So every window of a second, not only the long run, holds their share, less the
credit's range: a step of the others, and what one of their own earns. (Waiting until the credit
pays for the expected step lets it pile up where the step takes less, and be spent at once: the
worst second then had 4 % less.) The others get what is left, less a small headroom, as soon as
it has been left; what they had no work for is not paid out later, beyond the one step that lets
them begin at once.

Time is the sum of what has been charged: the device does nothing else.
"""

import math
from collections.abc import Mapping, Sequence

from deepseek.core.errors import ConfigurationError
from deepseek.core.qos import Priority, QoS
from deepseek.scheduling.sharing.fair_queue import FairQueue

_PRIORITY_FACTOR = {
    Priority.CRITICAL: 16.0,
    Priority.HIGH: 4.0,
    Priority.NORMAL: 1.0,
    Priority.LOW: 0.25,
}
"""How much of the unreserved time a model gets beside a normal one. Factors, not strict order:
nobody starves."""
_HEADROOM = 0.02
"""Part of what critical models leave open that is kept for them too: a share that holds on average
only is missed in half of all measured times."""
_IDLE_FACTOR = 3.0
"""How much longer steps may be while no model with a reservation has work. They cannot break a
share then, only delay the first step of one that wakes; and short steps of an encoder cost it
much of its throughput."""
_IDLE_PART = 0.1
"""Part of the promised time to the first token that such a step may take, where that is longer."""
_CREDIT_TO_BEGIN_S = 1e-4
"""Pays for one step of a model that begins to have work."""


class FairShare:
    """See the module; `deepseek.scheduling.sharing.base.StepPolicy` has the promises."""

    def __init__(self, models: Mapping[str, QoS], *, max_step_s: float) -> None:
        """Start with every account at zero."""
        self._max_step_s = max_step_s
        self._first = FairQueue()
        """Critical models with a reservation."""
        self._others = FairQueue()
        self._credit_s = 0.0
        """What those of `_first` were given beyond their reservations."""
        self._kept = 0.0
        """What is kept for those of `_first` that have work."""
        self._qos: dict[str, QoS] = {}
        self._ready: set[str] = set()
        self.reconfigure(models)

    def pick(self, ready: Sequence[str]) -> str:
        """Return the model with the least virtual time, a critical one first inside its part."""
        first = [model for model in ready if model in self._first]
        others = [model for model in ready if model not in self._first]
        self._note_ready(first, others)
        if not first:
            return self._others.pick()
        if not others:
            return self._first.pick()
        # Not at zero: where they have just begun to have work, critical models go first.
        return self._others.pick() if self._credit_s > 0 else self._first.pick()

    def charge(self, model: str, seconds: float) -> None:
        """Advance a model's virtual time, and the critical models' credit."""
        earned_s = 0.0
        if model in self._first:
            self._first.charge(model, seconds)
            earned_s = seconds
        else:
            self._others.charge(model, seconds)
        self._credit_s += earned_s - self._kept * seconds

    def max_step_s(self, model: str) -> float:
        """Return the bound where another model has a reservation that a long step would break.

        A critical model's steps may be as long as leaves the others one step for each: more would
        be paid to them at a time, and be missing from the critical model's next second.
        """
        others = {name: qos for name, qos in self._qos.items() if name != model}
        if model in self._first:
            left = 1.0 - self._qos[model].reserved_share
            return self._max_step_s / left if others and left > 0 else math.inf
        reserved = {name for name, qos in others.items() if qos.reserved_share > 0}
        if not reserved:
            return math.inf
        if reserved & self._ready:
            return self._max_step_s
        # An infinite promise is none: then there is no telling what a longer step would harm.
        promised_s = min(self._qos[name].ttft_s for name in reserved)
        patience_s = 0.0 if math.isinf(promised_s) else _IDLE_PART * promised_s
        return max(_IDLE_FACTOR * self._max_step_s, patience_s)

    def reconfigure(self, models: Mapping[str, QoS]) -> None:
        """Take new parts; virtual times stay, so that nobody gains or loses by the change."""
        weights = device_parts(models)
        first = {name: weights[name] for name, qos in models.items() if _goes_first(qos)}
        others = {name: weights[name] for name in models if name not in first}
        self._first.reconfigure(first)
        self._others.reconfigure(others)
        self._kept = _kept(self._first.ready_weight)
        self._qos = dict(models)

    def _note_ready(self, first: Sequence[str], others: Sequence[str]) -> None:
        self._ready = {*first, *others}
        if not self._first.has_ready:
            self._credit_s = 0.0
        if others and not self._others.has_ready:
            self._credit_s = min(self._credit_s, _CREDIT_TO_BEGIN_S)
        self._first.note_ready(set(first))
        self._others.note_ready(set(others))
        self._kept = _kept(self._first.ready_weight)


def _kept(reserved: float) -> float:
    return reserved + _HEADROOM * max(0.0, 1.0 - reserved) if reserved else 0.0


def _goes_first(qos: QoS) -> bool:
    return qos.priority is Priority.CRITICAL and qos.reserved_share > 0


def device_parts(models: Mapping[str, QoS]) -> dict[str, float]:
    """Return each model's part of the device while all have work; they sum to at most 1.

    Raises `ConfigurationError` where reservations leave nothing for those that have none.
    """
    reserved = sum(qos.reserved_share for qos in models.values())
    open_weights = {
        name: qos.weight * _PRIORITY_FACTOR[qos.priority]
        for name, qos in models.items()
        if qos.reserved_share == 0
    }
    # A sum such as 0.7 + 0.2 + 0.1 is a little above 1 in binary fractions.
    if reserved > 1 + 1e-9:
        names = ", ".join(name for name, qos in models.items() if qos.reserved_share > 0)
        raise ConfigurationError(
            f"qos.reserved_share: {names} together reserve {100 * reserved:.4g}% of one device; "
            "lower them to 100% at most, or give a model another pool",
            param="reserved_share",
        )
    left = 1.0 - reserved
    if open_weights and left < 1e-9:
        names = ", ".join(open_weights)
        raise ConfigurationError(
            f"qos.reserved_share: the whole device is reserved, and nothing is left for {names}; "
            "leave some of it open, reserve a part for them too, or give them another pool",
            param="reserved_share",
        )
    total = sum(open_weights.values())
    return {
        name: qos.reserved_share or left * open_weights[name] / total
        for name, qos in models.items()
    }
