"""What every policy shares: loads that somebody waits for first, then those that are foreseen.

A preload takes free room, or that of copies each of which is worth less by the byte, by a margin,
and all of which together are worth less. So every exchange gains, and exchanges come to an end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from deepseek.scheduling.preloading.base import (
    Action,
    Cancel,
    Evict,
    Load,
    ModelState,
    Residency,
    Tier,
)
from deepseek.scheduling.preloading.rankings import Ranking

_MARGIN = 1.5
"""How many times more a preload must be worth than what it displaces: estimates waver, and an
exchange costs a copy."""
_NEAREST_FIRST = (Tier.DEVICE, Tier.HOST)


class RankedPreloader:
    """Evicts by one ranking for what is waited for; preloads by another, or not at all."""

    def __init__(
        self, *, eviction: Ranking, preloading: Ranking | None, margin: float = _MARGIN
    ) -> None:
        """`preloading`: None loads on demand only; may be the same object as `eviction`."""
        self._eviction = eviction
        self._preloading = preloading
        self._margin = margin
        both = (eviction, preloading)
        self._rankings = [r for r in dict.fromkeys(both) if r is not None]

    def observe(self, model: str, *, now_s: float) -> None:
        """Tell the rankings."""
        for ranking in self._rankings:
            ranking.observe(model, now_s=now_s)

    def next_action(self, residency: Residency, *, now_s: float) -> Action | None:
        """See `PreloadingPolicy`."""
        self._meet(residency)
        needs = waited_for(residency)
        if residency.in_flight is not None:
            return self._cancelled(residency, residency.in_flight, needs, now_s)
        action = self._shrink(residency, now_s) or self._on_demand(residency, needs, now_s)
        if isinstance(action, Evict):
            self._eviction.note_evicted(action.signals["worth"], action.tier)
        if action is not None or needs or self._preloading is None or not residency.may_preload:
            return action
        return self._preload(residency, self._preloading, now_s)

    def _meet(self, residency: Residency) -> None:
        """Tell the rankings which models there are: else the first would be judged by itself."""
        for ranking in self._rankings:
            ranking.meet(model.name for model in residency.models)

    def _shrink(self, residency: Residency, now_s: float) -> Evict | None:
        """Return the least worth of a tier whose budget was lowered below what it holds."""
        for tier in residency.budgets:
            if residency.free_bytes(tier) >= 0:
                continue
            evictable = [model for model in residency.models if model.is_evictable(tier)]
            worth = {m.name: self._eviction.worth(m, tier, now_s=now_s) for m in evictable}
            if evictable:
                victim = min(evictable, key=lambda model: worth[model.name])
                return Evict(
                    model=victim.name,
                    tier=tier,
                    reason=f"the {tier} tier holds more than its budget",
                    signals={"worth": worth[victim.name]},
                )
        return None

    # what somebody waits for

    def _cancelled(
        self, residency: Residency, load: Load, needs: Sequence[ModelState], now_s: float
    ) -> Cancel | None:
        """Return the end of a preload that is in the way of a load which somebody waits for.

        One that somebody has begun to wait for is no preload any more, and goes on.
        """
        if load.is_on_demand or any(load.model == model.name for model in needs):
            return None
        if self._on_demand(replace(residency, in_flight=None), needs, now_s) is None:
            return None
        names = " and ".join(model.name for model in needs)
        return Cancel(
            model=load.model, tier=load.tier, reason=f"a request waits for the load of {names}"
        )

    def _on_demand(
        self, residency: Residency, needs: Sequence[ModelState], now_s: float
    ) -> Load | Evict | None:
        """Return the step for the first of them that can be loaded now."""
        for model in needs:
            victims = self._victims(residency, model, Tier.DEVICE, now_s)
            if victims is None:
                continue
            if victims:
                return self._evicted_for(model, victims[0], Tier.DEVICE, now_s)
            return self._load_on_demand(residency, model, now_s)
        return None

    def _load_on_demand(
        self, residency: Residency, model: ModelState, now_s: float
    ) -> Load | Evict:
        """Return the load to the device, past the host tier where others there are worth more."""
        fills_host = False
        if model.tier is Tier.DISK and Tier.HOST in residency.budgets:
            victims = self._victims(residency, model, Tier.HOST, now_s)
            worth = self._eviction.worth(model, Tier.HOST, now_s=now_s)
            if victims is not None and all(
                self._eviction.worth(victim, Tier.HOST, now_s=now_s) < worth for victim in victims
            ):
                if victims:
                    return self._evicted_for(model, victims[0], Tier.HOST, now_s)
                fills_host = True
        return Load(
            model=model.name,
            tier=Tier.DEVICE,
            is_on_demand=True,
            fills_host=fills_host,
            reason=f"a request waits for {model.name}, which is in the {model.tier} tier",
            signals={"load_s": model.load_s(Tier.DEVICE)},
        )

    def _victims(
        self, residency: Residency, model: ModelState, tier: Tier, now_s: float
    ) -> list[ModelState] | None:
        """Return what has to go for a load on demand, the least worth first; None: no way now."""
        missing = model.bytes_in(tier) - residency.free_bytes(tier)
        worth = {
            other.name: self._eviction.worth(other, tier, now_s=now_s)
            for other in residency.models
            if other.is_evictable(tier)
        }
        candidates = [other for other in residency.models if other.name in worth]
        candidates.sort(key=lambda other: worth[other.name])
        return _fewest(candidates, missing, tier)

    def _evicted_for(
        self, model: ModelState, victim: ModelState, tier: Tier, now_s: float
    ) -> Evict:
        return Evict(
            model=victim.name,
            tier=tier,
            reason=f"a request waits for {model.name}, which needs the room",
            signals={"worth": self._eviction.worth(victim, tier, now_s=now_s)},
        )

    # what is foreseen

    def _preload(self, residency: Residency, ranking: Ranking, now_s: float) -> Load | Evict | None:
        for tier in _NEAREST_FIRST:
            if tier not in residency.budgets:
                continue
            wanted = [model for model in residency.models if _is_preloadable(model, tier)]
            if not wanted:
                continue
            worth = {m.name: ranking.worth(m, tier, now_s=now_s) for m in residency.models}
            for model in sorted(wanted, key=lambda m: (not m.is_pinned, -worth[m.name])):
                victims = self._exchanged(residency, model, tier, worth)
                if victims is None:
                    continue
                if victims:
                    return _evicted_ahead(model, victims[0], tier, worth)
                return _load_ahead(residency, model, tier, worth)
        return None

    def _exchanged(
        self, residency: Residency, model: ModelState, tier: Tier, worth: Mapping[str, float]
    ) -> list[ModelState] | None:
        """Return what is to be given up for a preload; None: it does not pay."""
        missing = model.bytes_in(tier) - residency.free_bytes(tier)
        candidates = [
            other
            for other in residency.models
            if other.is_evictable(tier)
            and (model.is_pinned or worth[other.name] * self._margin < worth[model.name])
        ]
        candidates.sort(key=lambda other: worth[other.name])
        victims = _fewest(candidates, missing, tier)
        if not victims or model.is_pinned:
            return victims
        lost = sum(worth[victim.name] * victim.bytes_in(tier) for victim in victims)
        gained = worth[model.name] * model.bytes_in(tier)
        return victims if lost * self._margin < gained else None


def waited_for(residency: Residency) -> list[ModelState]:
    """Return the models whose load somebody waits for, the longest waiting first."""
    waiting = [
        (model.waiting_since_s, index, model)
        for index, model in enumerate(residency.models)
        if model.waiting_since_s is not None and Tier.DEVICE not in model.held
    ]
    return [model for _, _, model in sorted(waiting, key=lambda entry: entry[:2])]


def _is_preloadable(model: ModelState, tier: Tier) -> bool:
    """Say whether it makes sense to bring it there: not again, nor behind its own device copy."""
    if not (model.may_preload or model.is_pinned):
        return False
    if tier is Tier.HOST and not model.has_way_to_host:
        return False
    return tier not in model.held and Tier.DEVICE not in model.held


def _load_ahead(
    residency: Residency, model: ModelState, tier: Tier, worth: Mapping[str, float]
) -> Load:
    why = "is reserved" if model.is_pinned else "is the likeliest to be asked for next"
    passes_host = tier is Tier.DEVICE and model.tier is Tier.DISK
    return Load(
        model=model.name,
        tier=tier,
        is_on_demand=False,
        fills_host=passes_host and _has_room_in_host(residency, model),
        reason=f"there is room in the {tier} tier, and of what is not there {model.name} {why}",
        signals={"worth": worth[model.name]},
    )


def _has_room_in_host(residency: Residency, model: ModelState) -> bool:
    has_tier = Tier.HOST in residency.budgets
    return has_tier and model.host_bytes <= residency.free_bytes(Tier.HOST)


def _evicted_ahead(
    model: ModelState, victim: ModelState, tier: Tier, worth: Mapping[str, float]
) -> Evict:
    why = "is reserved" if model.is_pinned else "is likelier to be asked for next, for its size"
    return Evict(
        model=victim.name,
        tier=tier,
        reason=f"{model.name} {why}",
        signals={"worth": worth[victim.name], "worth_of_next": worth[model.name]},
    )


def _fewest(candidates: Sequence[ModelState], missing: int, tier: Tier) -> list[ModelState] | None:
    """Return the first candidates that make room, less those which later ones make needless."""
    chosen: list[ModelState] = []
    for model in candidates:
        if missing <= 0:
            break
        chosen.append(model)
        missing -= model.bytes_in(tier)
    if missing > 0:
        return None
    for model in reversed(chosen[:-1]):
        if missing + model.bytes_in(tier) <= 0:
            chosen.remove(model)
            missing += model.bytes_in(tier)
    return chosen
