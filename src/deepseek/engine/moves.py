"""Carries out what is decided about a pool's models: builds, parks, wakes and takes apart engines.

Lives in the step loop's thread, as the places do. What takes long the loader's thread does; of
loads one is under way at a time, and what has become of it comes back through the loop's inbox.
While a model is away its requests wait in the engine that stands in for it.
"""

import logging
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import msgspec
import torch

from deepseek.core.decisions import Decision, TimeScale
from deepseek.core.errors import DeepseekError, EngineFault, ModelUnavailable
from deepseek.core.residency import Residency
from deepseek.core.wire import AdapterInfo, AdapterSpec, Event, Failed, ModelChanged, ModelInfo
from deepseek.engine.base import AdapterHost, Engine, Parkable
from deepseek.engine.load_pace import LoadCancelled, LoadPace
from deepseek.engine.model_loader import ModelLoader, ModelRead
from deepseek.engine.outlook import Outlook
from deepseek.engine.place import AdapterCommand, Place
from deepseek.scheduling.preloading.base import Evict, Load, Tier

logger = logging.getLogger(__name__)

_NO_MEMORY = (
    "the device has not so much memory left; lower the pool's weights_bytes or kv_cache_bytes"
)


@dataclass(slots=True, kw_only=True)
class Underway:
    """The load that the loader is at."""

    place: Place
    load: Load
    pace: LoadPace
    is_wake: bool
    is_cancelled: bool = False


class Moves:
    """Moves models between the tiers, one load at a time."""

    def __init__(
        self,
        loader: ModelLoader,
        outlook: Outlook,
        *,
        put: Callable[[AdapterCommand], None],
        send: Callable[[Event], None],
        tell: Callable[[Decision], None],
        preload_bytes_per_s: int,
    ) -> None:
        """`put` gives a command that has waited back to the loop; `tell` takes what has come of a
        load, for `deepseek why`. `preload_bytes_per_s`: of loads that nobody waits for.
        """
        self._loader = loader
        self._outlook = outlook
        self._put = put
        self._send = send
        self._tell = tell
        self._preload_bytes_per_s = preload_bytes_per_s
        self.underway: Underway | None = None

    # what is decided

    def begin(self, place: Place, load: Load, *, now_s: float) -> None:
        """Begin a load; none may be under way."""
        self._outlook.note_room(place, now_s)
        pace = LoadPace(
            bytes_per_s=math.inf if load.is_on_demand else self._preload_bytes_per_s,
            total_bytes=place.num_bytes,
        )
        is_wake = place.parked is not None
        self.underway = Underway(place=place, load=load, pace=pace, is_wake=is_wake)
        self._become(place, Residency.LOADING)
        if place.parked is not None:
            self._loader.wake(place.parked, place.info, pace)
            return
        adapters = [AdapterSpec(name=n, path=path) for n, path in place.model.adapters.items()]
        spec = msgspec.structs.replace(place.spec, adapters=adapters)
        if load.tier is Tier.HOST:
            self._loader.begin_parked(spec, pace)
        else:
            keeps_host_copy = load.fills_host and place.may_park
            self._loader.begin(spec, pace, keeps_host_copy=keeps_host_copy)

    def hurry(self, place: Place) -> None:
        """Have a load that was ahead of all requests go on as one that is waited for."""
        underway = self.underway
        if underway is not None and underway.place is place:
            underway.load = replace(underway.load, is_on_demand=True)
            underway.pace.hurry()

    def cancel(self) -> None:
        """End the load under way before its next piece; that it has ended comes back as ever."""
        if self.underway is not None:
            self.underway.is_cancelled = True
            self.underway.pace.cancel()

    def evict(self, place: Place, evict: Evict) -> None:
        """Give up a model's copy in a tier: the host tier's stays when the device's goes."""
        if evict.tier is Tier.DEVICE:
            self._leave_device(place)
        elif place.parked is not None:
            self._loader.take_apart(place.parked)
            place.parked = None
            self._become(place, Residency.DISK)
        elif isinstance(place.on_device, Parkable):
            place.on_device.drop_host_copy()

    def _leave_device(self, place: Place) -> None:
        place.num_evictions += 1
        engine = place.model.release()
        if isinstance(engine, Parkable) and engine.can_park:
            self._loader.park(engine)
            self._rest_in_host(place, engine)
        else:
            self._loader.take_apart(engine)
            self._become(place, Residency.DISK)

    def _rest_in_host(self, place: Place, engine: Parkable, info: ModelInfo | None = None) -> None:
        place.parked = engine
        self._become(place, Residency.HOST, info)

    # what a load has come to

    def land(self, read: ModelRead, *, now_s: float) -> list[Failed]:
        """Take what a load has come to; return the answers to those who had waited in vain."""
        underway, self.underway = self.underway, None
        if underway is None or underway.place.name != read.model:
            raise RuntimeError(f"no load of model {read.model!r} is under way")
        place = underway.place
        try:
            engine, info = read.outcome.result()
        except LoadCancelled:
            self._become(place, _resting(place))
            return []
        except torch.OutOfMemoryError:
            # The model is as good as before: it is tried again when it is asked for.
            return self._fail(place, _NO_MEMORY, state=_resting(place), now_s=now_s)
        except (DeepseekError, OSError) as error:
            return self._fail(place, str(error), now_s=now_s)
        except Exception as error:
            logger.exception("model %s could not be loaded", read.model)
            return self._fail(place, f"{EngineFault.code}: {type(error).__name__}", now_s=now_s)
        place.num_bytes = info.weights_bytes
        if underway.load.is_on_demand:
            self._outlook.note_load(place, seconds=info.load_s, is_wake=underway.is_wake)
        if underway.load.tier is Tier.HOST and isinstance(engine, Parkable):
            self._tell_loaded(place, info, f"{place.name} is in the host tier", now_s=now_s)
            self._rest_in_host(place, engine, info)
            return []
        return self._install(place, engine, info, now_s=now_s)

    def _install(
        self, place: Place, engine: Engine, info: ModelInfo, *, now_s: float
    ) -> list[Failed]:
        place.num_loads += 1
        place.loaded_s = now_s
        if place.parked is not None:
            place.parked = None
            info = _with_adapters(info, engine, place.model.adapters)
        refused = place.model.take(engine)
        self._tell_loaded(place, info, f"{place.name} is ready", now_s=now_s)
        self._become(place, Residency.READY, info)
        self._give_back_commands(place)
        return refused

    def _fail(
        self, place: Place, reason: str, *, state: Residency = Residency.FAILED, now_s: float
    ) -> list[Failed]:
        name = place.name
        logger.error("model %s could not be loaded: %s", name, reason)
        self._tell(_decision(place, "load-failed", f"{name} could not be loaded: {reason}", now_s))
        place.is_retired = True
        place.called_since_s = None
        if place.parked is not None and state is Residency.FAILED:
            self._loader.take_apart(place.parked)  # it may be half there
            place.parked = None
        self._become(place, state)
        error = ModelUnavailable(f"model {name!r} could not be loaded: {reason}")
        failed = place.model.give_up_waiting(error)
        failed += [Failed(command.id, error.code, error.message) for command in place.commands]
        place.commands.clear()
        return failed

    def _give_back_commands(self, place: Place) -> None:
        commands, place.commands = place.commands, []
        for command in commands:
            self._put(command)

    def _tell_loaded(self, place: Place, info: ModelInfo, reason: str, *, now_s: float) -> None:
        signals = {"load_s": info.load_s, "weights_bytes": float(info.weights_bytes)}
        self._tell(_decision(place, "loaded", reason, now_s, signals))

    def _become(self, place: Place, state: Residency, info: ModelInfo | None = None) -> None:
        """Enter a state; whoever waits for a ready or failed model has what there was to have."""
        place.state = state
        if state in (Residency.READY, Residency.FAILED):
            place.called_since_s = None
        place.info = msgspec.structs.replace(info or place.info, residency=state)
        self._send(ModelChanged(place.info))


def _resting(place: Place) -> Residency:
    """Return where a model is that is not on the device."""
    return Residency.DISK if place.parked is None else Residency.HOST


def _with_adapters(info: ModelInfo, engine: Engine, wanted: Collection[str]) -> ModelInfo:
    """Drop from an engine that was parked what has been dropped meanwhile; return what it has."""
    if not isinstance(engine, AdapterHost):
        return info
    for name in set(engine.adapter_names).difference(wanted):
        engine.drop_adapter(name)
    errors = {adapter.name: adapter.error for adapter in info.adapters}
    errors |= dict.fromkeys(engine.adapter_names)
    adapters = [AdapterInfo(name=name, error=errors.get(name)) for name in wanted]
    return msgspec.structs.replace(info, adapters=adapters)


def _decision(
    place: Place,
    action: str,
    reason: str,
    now_s: float,
    signals: dict[str, float] | None = None,
) -> Decision:
    return Decision(
        at_s=now_s,
        model=place.name,
        scale=TimeScale.MEDIUM,
        action=action,
        reason=reason,
        signals=signals or {},
    )
