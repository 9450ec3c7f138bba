"""A queue of models by virtual time (start-time fair queueing); knows no reservations."""

from collections.abc import Mapping, Set
from dataclasses import dataclass


@dataclass(slots=True)
class _Account:
    """One model's."""

    weight: float
    virtual_s: float
    is_ready: bool = False


class FairQueue:
    """Serves those with work in proportion to their weights."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._now_s = 0.0
        """Virtual time of the model that was picked last."""

    def __contains__(self, model: str) -> bool:
        return model in self._accounts

    def __len__(self) -> int:
        return len(self._accounts)

    @property
    def has_ready(self) -> bool:
        return any(account.is_ready for account in self._accounts.values())

    @property
    def ready_weight(self) -> float:
        """The sum of the weights of those with work."""
        return sum(account.weight for account in self._accounts.values() if account.is_ready)

    def note_ready(self, names: Set[str]) -> None:
        """Say who has work now; those that wake begin at the others' virtual time."""
        for name, account in self._accounts.items():
            if name in names and not account.is_ready:
                account.virtual_s = max(account.virtual_s, self._now_s)
            account.is_ready = name in names

    def pick(self) -> str:
        """Return who goes next of those with work, and move the queue's virtual time there.

        There must be one.
        """
        ready = (name for name, account in self._accounts.items() if account.is_ready)
        model = min(ready, key=lambda name: self._accounts[name].virtual_s)
        self._now_s = max(self._now_s, self._accounts[model].virtual_s)
        return model

    def charge(self, model: str, seconds: float) -> None:
        """Advance the model's virtual time."""
        account = self._accounts[model]
        account.virtual_s += seconds / account.weight

    def reconfigure(self, weights: Mapping[str, float]) -> None:
        """Take new weights; who is new begins at the others' virtual time.

        Who was ahead of the others stays ahead by as much device time. The same virtual time would
        be far more of it at a larger weight: after one step of 10 ms at a weight of 0.001, a model
        that is given half of the device would wait for 10 s.
        """
        self._accounts = {name: self._account(name, weight) for name, weight in weights.items()}

    def _account(self, name: str, weight: float) -> _Account:
        account = self._accounts.get(name) or _Account(weight, self._now_s)
        ahead_s = (account.virtual_s - self._now_s) * account.weight
        account.virtual_s = self._now_s + ahead_s / weight
        account.weight = weight
        return account
