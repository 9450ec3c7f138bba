"""The plug-in point of preloading policies, and the words of the loader that asks them.

Three tiers: disk has every model; host memory and the device have a budget of bytes each. A model
may be in both of them, as immutable weights are: giving one copy up leaves the other.

The loader does one action at a time:

1. `policy.observe(model, now_s=...)` for every request that arrives;
2. `policy.next_action(residency, now_s=...)` when a request arrives for a model that is not on
   the device, when one was answered, when an action is done, and about once a second besides: what
   is worth loading changes with the time alone;
3. do what it says, describe the tiers again, ask again, until it says None.

While a load is under way it is described as `Residency.in_flight`, and the only further action is
to cancel it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from deepseek.core.decisions import Decision, TimeScale


class Tier(StrEnum):
    """Where weights are; each is nearer to the first token than the one before."""

    DISK = "disk"
    HOST = "host"
    DEVICE = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """One model, as it is now."""

    name: str
    host_bytes: int
    """What it takes of the host tier."""
    device_bytes: int
    """What it takes of the device."""
    host_s: float
    """What reading it from disk takes; `retry.Bandwidth` knows."""
    device_s: float
    """What copying it from the host tier to the device takes."""
    held: frozenset[Tier] = frozenset()
    """Where whole copies are, disk left out."""
    is_pinned: bool = False
    """Reserved: loaded before all others, never evicted."""
    is_in_use: bool = False
    """Requests run on it; its copy on the device stays."""
    waiting_since_s: float | None = None
    """Arrival of the oldest request that waits for it; None: nobody waits. Once it is on the
    device, it stays until they run."""
    may_preload: bool = True
    """False: loaded on demand only, as a model that its `keepAlive` has scaled to zero."""
    has_way_to_host: bool = True
    """False: nothing but a load to the device can bring it to the host tier now."""

    @property
    def tier(self) -> Tier:
        """The nearest tier that has it."""
        return next((t for t in (Tier.DEVICE, Tier.HOST) if t in self.held), Tier.DISK)

    def bytes_in(self, tier: Tier) -> int:
        """Return what a copy in this tier takes."""
        if tier is Tier.DISK:
            return 0
        return self.host_bytes if tier is Tier.HOST else self.device_bytes

    def load_s(self, tier: Tier) -> float:
        """Return what loading it into this tier takes, were it not there."""
        from_disk_s = 0.0 if Tier.HOST in self.held and tier is Tier.DEVICE else self.host_s
        return from_disk_s + (self.device_s if tier is Tier.DEVICE else 0.0)

    def is_evictable(self, tier: Tier) -> bool:
        """Say whether its copy in this tier may be given up."""
        is_busy = tier is Tier.DEVICE and (self.is_in_use or self.waiting_since_s is not None)
        return tier in self.held and not (self.is_pinned or is_busy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Bring a model into a tier from the nearest one that has it."""

    model: str
    tier: Tier
    is_on_demand: bool
    """Somebody waits: at full speed, at once. Else it is a preload: within the rate limit."""
    fills_host: bool = False
    """On its way from disk to the device, leave a copy in the host tier; there is room for it."""
    reason: str
    """One plain sentence for `deepseek why`."""
    signals: Mapping[str, float] = field(default_factory=dict)

    def bytes_in(self, tier: Tier, model: ModelState) -> int:
        """Return what it takes of a tier while under way and after."""
        is_filled = tier is self.tier or (tier is Tier.HOST and self.fills_host)
        return model.bytes_in(tier) if is_filled else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evict:
    """Give up a model's copy in a tier."""

    model: str
    tier: Tier
    reason: str
    signals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """End the preload that is under way at its next chunk; what it took is free again."""

    model: str
    tier: Tier
    reason: str
    signals: Mapping[str, float] = field(default_factory=dict)


Action = Load | Evict | Cancel


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """All models and what there is for them: everything that an action depends on."""

    models: Sequence[ModelState]
    budgets: Mapping[Tier, int]
    """Bytes of the host tier and of the device. A tier that is not named does not exist."""
    in_flight: Load | None = None
    """The load under way; its bytes are taken."""
    in_flight_part: float = 0.0
    """How much of it is done, from 0 to 1."""
    may_preload: bool = True
    """False while the device has better to do; loads that somebody waits for go on."""

    def model(self, name: str) -> ModelState:
        """Return a model by name; raises `KeyError`."""
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(name)

    def free_bytes(self, tier: Tier) -> int:
        """Return what is left of a tier's budget; below zero where the budget was lowered."""
        used = sum(model.bytes_in(tier) for model in self.models if tier in model.held)
        if self.in_flight is not None:
            used += self.in_flight.bytes_in(tier, self.model(self.in_flight.model))
        return self.budgets.get(tier, 0) - used


class PreloadingPolicy(Protocol):
    """Decides for one device and its host tier; holds no clock, thread or tensor.

    Promises of every policy: the budgets are never exceeded; what is pinned, and on the device what
    is in use, is never evicted; while somebody waits for a load there is no other action than those
    that lead to one; asked again without any change it comes to None.
    """

    def observe(self, model: str, *, now_s: float) -> None:
        """Learn that a request for this model has arrived; never blocks."""
        ...

    def next_action(self, residency: Residency, *, now_s: float) -> Action | None:
        """Return what to do now, or None. Changes only its own state, and may be asked anew."""
        ...


def decision_of(action: Action, *, now_s: float) -> Decision:
    """Return the action as `deepseek why` tells it."""
    match action:
        case Load(is_on_demand=True):
            word = "load"
        case Load():
            word = "preload"
        case Evict():
            word = "evict"
        case Cancel():
            word = "cancel-preload"
    return Decision(
        at_s=now_s,
        model=action.model,
        scale=TimeScale.MEDIUM,
        action=word,
        reason=action.reason,
        signals={"tier": str(action.tier), **action.signals},
    )
