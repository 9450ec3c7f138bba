"""The loader of the simulation: what a load takes on the virtual clock, and what it moved."""

from dataclasses import dataclass, replace

from deepseek.scheduling.preloading.base import Load, ModelState, Tier


@dataclass(slots=True, kw_only=True)
class MovedBytes:
    """Bytes that were copied into a tier, by what for."""

    on_demand: int = 0
    preloaded: int = 0
    cancelled: int = 0
    """Of preloads that were not ended."""

    @property
    def total(self) -> int:
        return self.on_demand + self.preloaded + self.cancelled


class SimulatedLoader:
    """One load at a time, that may be hurried or cancelled."""

    def __init__(self, *, preload_speed: float) -> None:
        """`preload_speed`: as a part of the speed of a load on demand."""
        self._speed = preload_speed
        self.load: Load | None = None
        self.number = 0
        """Of the load, or of the last change of its speed."""
        self.moved = {tier: MovedBytes() for tier in (Tier.HOST, Tier.DEVICE)}
        self._from_s = self._ends_s = 0.0
        self._part = 0.0
        """Done before `_from_s`."""

    def begin(self, load: Load, model: ModelState, now_s: float) -> float:
        """Return when it will end."""
        self.load = load
        self._part = 0.0
        return self._run(now_s, model, speed=1.0 if load.is_on_demand else self._speed)

    def hurry(self, now_s: float, model: ModelState) -> float:
        """Turn a preload into a load on demand; return when it will end now."""
        assert self.load is not None  # noqa: S101 - the caller's promise
        self._part = self.part(now_s)
        self.load = replace(self.load, is_on_demand=True)
        return self._run(now_s, model, speed=1.0)

    def part(self, now_s: float) -> float:
        """Return how much is done, from 0 to 1."""
        if self.load is None or self._ends_s <= self._from_s:
            return self._part
        passed = (now_s - self._from_s) / (self._ends_s - self._from_s)
        return self._part + (1.0 - self._part) * min(1.0, passed)

    def finish(self, model: ModelState) -> frozenset[Tier]:
        """End the load; return the tiers that have the model now."""
        load, self.load = self.load, None
        assert load is not None  # noqa: S101 - the caller's promise
        filled = frozenset(tier for tier in self.moved if load.bytes_in(tier, model) > 0)
        for tier in filled:
            if load.is_on_demand:
                self.moved[tier].on_demand += model.bytes_in(tier)
            else:
                self.moved[tier].preloaded += model.bytes_in(tier)
        return filled

    def cancel(self, now_s: float, model: ModelState) -> None:
        """End the load, and lose what it has moved."""
        assert self.load is not None  # noqa: S101 - the caller's promise
        moved = self.part(now_s) * model.bytes_in(self.load.tier)
        self.moved[self.load.tier].cancelled += int(moved)
        self.load = None

    def _run(self, now_s: float, model: ModelState, *, speed: float) -> float:
        assert self.load is not None  # noqa: S101 - the callers' promise
        self.number += 1
        self._from_s = now_s
        left_s = (1.0 - self._part) * model.load_s(self.load.tier)
        self._ends_s = now_s + left_s / speed
        return self._ends_s
