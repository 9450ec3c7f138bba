"""What there is room for and what loads will take: for policies, and for those who wait.

Loads are measured as they end; before the first one, guesses stand in that promise little.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deepseek.core.errors import ModelLoading, ModelUnavailable
from deepseek.core.residency import Residency
from deepseek.core.wire import ModelSpec
from deepseek.engine.place import Place
from deepseek.scheduling.preloading.base import Load, ModelState, Tier
from deepseek.scheduling.preloading.base import Residency as Tiers
from deepseek.scheduling.preloading.retry import Bandwidth, RetryEstimate, has_room

_FIRST_READ_BYTES_PER_S = 400e6
_FIRST_WAKE_BYTES_PER_S = 10e9
_NO_BUDGET = 1 << 62


def _always(model: ModelSpec, num_bytes: int) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSizes:
    """The memory for a pool's weights."""

    device_bytes: int | None = None
    """None: no bound."""
    host_bytes: int = 0
    """Beside a GPU; 0: there is no host tier."""
    has_way_to_host: Callable[[ModelSpec, int], bool] = _always
    """Says whether a model of so many bytes can be read into the host tier now. Its way
    leads over the device, whose memory it needs for a while beside all that is there."""

    @property
    def budgets(self) -> dict[Tier, int]:
        """The tiers as policies know them."""
        device = {Tier.DEVICE: _NO_BUDGET if self.device_bytes is None else self.device_bytes}
        return device | ({Tier.HOST: self.host_bytes} if self.host_bytes else {})


class Outlook:
    """Looks at the places of a pool's models."""

    def __init__(self, places: Mapping[str, Place], sizes: TierSizes) -> None:
        self._places = places
        self._sizes = sizes
        self._budgets = sizes.budgets
        self._reading = Bandwidth(_FIRST_READ_BYTES_PER_S)
        self._waking = Bandwidth(_FIRST_WAKE_BYTES_PER_S)
        self._retry = RetryEstimate()

    @property
    def has_host_tier(self) -> bool:
        return Tier.HOST in self._budgets

    def tiers(self, *, in_flight: Load | None, part: float, may_preload: bool) -> Tiers:
        """Return all that a policy decides from; `part` of the load in flight is done."""
        asks_way = may_preload and self.has_host_tier and in_flight is None
        return Tiers(
            models=[self._model(place, asks_way=asks_way) for place in self._places.values()],
            budgets=self._budgets,
            in_flight=in_flight,
            in_flight_part=part,
            may_preload=may_preload,
        )

    def obstacle(self, place: Place) -> ModelUnavailable | None:
        """Return why there can never be room on the device."""
        kept = sum(
            other.num_bytes
            for other in self._places.values()
            if other is not place and other.is_pinned and other.state is Residency.READY
        )
        left = self._budgets[Tier.DEVICE] - kept
        if place.num_bytes <= left:
            return None
        return ModelUnavailable(
            f"model {place.name!r} needs {place.num_bytes / 2**20:.0f} MiB for its weights; "
            f"of the pool's weights_bytes {max(0, left) / 2**20:.0f} MiB are not kept for others"
        )

    def lateness(self, place: Place, tiers: Tiers) -> ModelLoading | None:
        """Return why a request that comes now could not be answered by its deadline."""
        ttft_s = place.model.qos.ttft_s
        if math.isinf(ttft_s):
            return None
        expected_s = self._retry.seconds(tiers, place.name)
        if expected_s <= ttft_s:
            return None
        return ModelLoading(
            f"model {place.name!r} is being loaded, for about {expected_s:.1f} s more; its answers "
            f"are due {ttft_s:g} s after a request",
            retry_after_s=self._retry.retry_after_s(tiers, place.name),
        )

    def note_no_room(self, tiers: Tiers, now_s: float) -> None:
        """Remember since when what is waited for finds no room."""
        for place in self._places.values():
            is_stuck = place.waiting_since_s is not None and place.state is not Residency.READY
            if is_stuck and not has_room(tiers, tiers.model(place.name)):
                place.no_room_since_s = place.no_room_since_s or now_s

    def note_room(self, place: Place, now_s: float) -> None:
        """Learn how long a load that begins now has waited for room."""
        if place.no_room_since_s is not None:
            self._retry.observe_room(seconds=now_s - place.no_room_since_s)
            place.no_room_since_s = None

    def note_load(self, place: Place, *, seconds: float, is_wake: bool) -> None:
        """Learn what a load took that nothing slowed."""
        place.load_s = seconds
        if is_wake:
            place.wake_s = seconds
            self._waking.observe(place.num_bytes, seconds=seconds)
        else:
            place.read_s = seconds
            self._reading.observe(place.num_bytes, seconds=seconds)

    def _model(self, place: Place, *, asks_way: bool) -> ModelState:
        num_bytes, held = place.num_bytes, place.held
        read_s, wake_s = place.read_s, place.wake_s
        has_way = asks_way and not held and self._sizes.has_way_to_host(place.spec, num_bytes)
        if read_s is None:
            read_s = self._reading.seconds(num_bytes)
        if wake_s is None:
            wake_s = self._waking.seconds(num_bytes)
        return ModelState(
            name=place.name,
            # What is never parked has no place in the host tier: it must not make room there.
            host_bytes=num_bytes if place.may_park or Tier.HOST in held else _NO_BUDGET,
            device_bytes=num_bytes,
            host_s=read_s,
            device_s=wake_s if self.has_host_tier else 0.0,
            held=held,
            is_pinned=place.is_pinned,
            is_in_use=place.model.is_in_use,
            waiting_since_s=place.waiting_since_s,
            may_preload=not place.is_retired and place.state is not Residency.FAILED,
            has_way_to_host=has_way,
        )
