"""When a request for a model that cannot be loaded in time is worth sending again.

Bandwidths are measured, not promised: each load that ends tells what it took, and old ones are
forgotten, so that a disk that has become slow is believed after a few loads.
"""

import math

from deepseek.scheduling.preloading.base import ModelState, Residency, Tier
from deepseek.scheduling.preloading.preloader import waited_for

_REMEMBERED = 8.0
_LEAST_S = 1


class Bandwidth:
    """Bytes per second of one way: from disk to the host tier, or from there to the device."""

    def __init__(self, guess: float, *, remembered: float = _REMEMBERED) -> None:
        """`guess`: bytes/s, worth one load; `remembered`: loads after which one counts for 1/e."""
        if not 0 < guess < math.inf:
            raise ValueError(f"a bandwidth of {guess:g} bytes/s")
        self._kept = math.exp(-1.0 / remembered)
        self._guess = guess
        self._num_bytes = self._seconds = 0.0

    @property
    def bytes_per_s(self) -> float:
        """The bandwidth of the loads that are remembered."""
        return self._num_bytes / self._seconds if self._seconds > 0 else self._guess

    def observe(self, num_bytes: int, *, seconds: float) -> None:
        """Learn what an undisturbed load took; those of preloads are slowed on purpose."""
        if num_bytes <= 0 or seconds <= 0:
            return
        if self._seconds == 0:
            self._num_bytes, self._seconds = float(num_bytes), num_bytes / self._guess
        self._num_bytes = self._kept * self._num_bytes + num_bytes
        self._seconds = self._kept * self._seconds + seconds

    def seconds(self, num_bytes: int) -> float:
        """Return what moving so many bytes takes."""
        return num_bytes / self.bytes_per_s


class RetryEstimate:
    """Tells how long until a model could be on the device."""

    def __init__(self, *, remembered: float = _REMEMBERED) -> None:
        """`remembered`: waits for room after which one counts for 1/e."""
        self._kept = math.exp(-1.0 / remembered)
        self._weight = self._waited_s = 0.0

    def observe_room(self, *, seconds: float) -> None:
        """Learn how long a load that found no room waited for requests of other models to end."""
        self._weight = self._kept * self._weight + 1.0
        self._waited_s = self._kept * self._waited_s + seconds

    def seconds(self, residency: Residency, model: str) -> float:
        """Return in how many seconds the model could serve; 0 where it is on the device.

        The loads ahead of it, its own, and the usual wait for room where there is none now. A
        preload under way is cancelled, and not counted, unless it is this model's.
        """
        wanted = residency.model(model)
        if Tier.DEVICE in wanted.held:
            return 0.0
        total_s = _ahead_s(residency, wanted) + _own_s(residency, wanted)
        if self._weight and not has_room(residency, wanted):
            total_s += self._waited_s / self._weight
        return total_s

    def retry_after_s(self, residency: Residency, model: str) -> int:
        """Return it as `Retry-After` says it: whole seconds, 1 at least."""
        return max(_LEAST_S, math.ceil(self.seconds(residency, model)))


def has_room(residency: Residency, wanted: ModelState) -> bool:
    """Say whether the device could take a model now: nothing in use would have to go."""
    if residency.in_flight is not None and residency.in_flight.model == wanted.name:
        return True
    evictable = sum(m.device_bytes for m in residency.models if m.is_evictable(Tier.DEVICE))
    return wanted.device_bytes <= residency.free_bytes(Tier.DEVICE) + evictable


def _ahead_s(residency: Residency, wanted: ModelState) -> float:
    """Return what is left of the load under way, and those of models waited for longer."""
    load = residency.in_flight
    total_s = 0.0
    if load is not None and load.is_on_demand and load.model != wanted.name:
        left = 1.0 - residency.in_flight_part
        total_s += left * residency.model(load.model).load_s(load.tier)
    for model in waited_for(residency):
        if model.name == wanted.name:
            break
        if load is None or model.name != load.model:
            total_s += model.load_s(Tier.DEVICE)
    return total_s


def _own_s(residency: Residency, wanted: ModelState) -> float:
    load = residency.in_flight
    if load is None or load.model != wanted.name:
        return wanted.load_s(Tier.DEVICE)
    done_s = residency.in_flight_part * wanted.load_s(load.tier)
    return wanted.load_s(Tier.DEVICE) - done_s
