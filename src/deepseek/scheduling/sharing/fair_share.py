"""Start-time fair queueing over measured device time, with reservations.

Each model has a virtual time that grows by `seconds / weight`; of those with work, the least goes
next (Goyal et al., SIGCOMM 1996). Weights are parts of the device: a reservation is its own; what
no reservation takes is split among the models without one, by `QoS.weight` and priority. While a
model has work it is served at least its part of the time, less its own longest step and one of each
of the others; what some do not use goes to whoever has work; being idle earns nothing.

A critical model goes ahead of all others inside its reservation. It keeps a credit, the time it was
given beyond its reservation since it began to have work, and another model steps only where that
credit pays for the step: so every window of a second, not only the long run, holds its share. The
credit is bounded by one step of the others: what it did not need earlier is not paid out later.

Time is the sum of what has been charged: the device does nothing else.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepseek.core.errors import ConfigurationError
from deepseek.core.qos import Priority, QoS
from deepseek.scheduling.sharing.base import Contender

_PRIORITY_FACTOR = {
    Priority.CRITICAL: 16.0,
    Priority.HIGH: 4.0,
    Priority.NORMAL: 1.0,
    Priority.LOW: 0.25,
}
"""How much of the unreserved time a model gets beside a normal one. Factors, not strict order:
nobody starves."""


@dataclass(slots=True)
class _Account:
    """One model's."""

    qos: QoS
    weight: float
    """Its part of the device while everybody has work."""
    virtual_s: float = 0.0
    credit_s: float = 0.0
    is_ready: bool = False

    @property
    def is_strict(self) -> bool:
        return self.qos.priority is Priority.CRITICAL and self.qos.reserved_share > 0


class FairShare:
    """See the module; `deepseek.scheduling.sharing.base.StepPolicy` has the promises."""

    def __init__(self, models: Mapping[str, QoS], *, max_step_s: float) -> None:
        """Start with every account at zero."""
        weights = device_parts(models)
        self._accounts = {name: _Account(qos, weights[name]) for name, qos in models.items()}
        self._max_step_s = max_step_s
        self._now_s = 0.0
        """Virtual time of the model that was picked last."""

    def pick(self, ready: Sequence[Contender]) -> str:
        """Return the model with the least virtual time, unless a critical one must go first."""
        self._note_ready(ready)
        strict = [c for c in ready if self._accounts[c.model].is_strict]
        others = [c for c in ready if not self._accounts[c.model].is_strict]
        if strict and others:
            candidate = min(others, key=self._virtual_s)
            step_s = candidate.step_s or self._bound_s
            most_behind = min(strict, key=lambda c: self._accounts[c.model].credit_s)
            account = self._accounts[most_behind.model]
            if account.credit_s < account.qos.reserved_share * step_s:
                return self._picked(most_behind.model)
            return self._picked(candidate.model)
        return self._picked(min(ready, key=self._virtual_s).model)

    def charge(self, model: str, seconds: float) -> None:
        """Advance a model's virtual time, and everybody's credit."""
        charged = self._accounts[model]
        charged.virtual_s += seconds / charged.weight
        for account in self._accounts.values():
            if account.is_strict and (account.is_ready or account is charged):
                earned_s = seconds if account is charged else 0.0
                credit_s = account.credit_s + earned_s - account.qos.reserved_share * seconds
                account.credit_s = min(credit_s, self._bound_s)

    def max_step_s(self, model: str) -> float:
        """Return the bound where another model has a reservation that a long step would break."""
        if self._accounts[model].is_strict:
            return math.inf
        reserved = any(
            account.qos.reserved_share > 0
            for name, account in self._accounts.items()
            if name != model
        )
        return self._max_step_s if reserved else math.inf

    def reconfigure(self, models: Mapping[str, QoS]) -> None:
        """Take new parts; virtual times stay, so that nobody gains or loses by the change."""
        weights = device_parts(models)
        for name, qos in models.items():
            account = self._accounts.get(name)
            if account is None:
                self._accounts[name] = _Account(qos, weights[name], virtual_s=self._now_s)
            else:
                account.qos, account.weight = qos, weights[name]
        for name in self._accounts.keys() - models.keys():
            del self._accounts[name]

    @property
    def _bound_s(self) -> float:
        """The longest step of others that a credit is kept for."""
        return self._max_step_s if math.isfinite(self._max_step_s) else 0.1

    def _note_ready(self, ready: Sequence[Contender]) -> None:
        """Let those that wake begin at the others' virtual time, without credit."""
        names = {contender.model for contender in ready}
        for name, account in self._accounts.items():
            if name in names and not account.is_ready:
                account.virtual_s = max(account.virtual_s, self._now_s)
                account.credit_s = 0.0
            account.is_ready = name in names

    def _virtual_s(self, contender: Contender) -> float:
        return self._accounts[contender.model].virtual_s

    def _picked(self, model: str) -> str:
        self._now_s = max(self._now_s, self._accounts[model].virtual_s)
        return model


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
            f"qos.reserved_share: {names} together reserve {reserved:.0%} of one device; lower them "
            "to 100% at most, or give a model another pool",
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
