"""Which of a pool's models are in memory: loads what is asked for, and what will be; evicts.

The decisions are `deepseek.scheduling.preloading`'s, this carries them out: it lives in the step
loop's thread, has models built and taken apart by another one (`engine.model_loader`), and goes on
when that one's answer comes back through the loop's inbox. While a model is away its requests wait
in the engine that stands in for it. On a CPU the host's memory is the device, so there is one tier.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from deepseek.core.decisions import Decision, TimeScale
from deepseek.core.errors import DeepseekError, EngineFault, ModelLoading, ModelUnavailable
from deepseek.core.load import ModelLoad
from deepseek.core.residency import Residency
from deepseek.core.wire import (
    AdapterSpec,
    DropAdapter,
    Event,
    Failed,
    LoadAdapter,
    ModelChanged,
    ModelInfo,
    ModelSpec,
)
from deepseek.engine.base import Engine
from deepseek.engine.hosted_model import HostedModel
from deepseek.engine.load_pace import LoadCancelled, LoadPace
from deepseek.engine.model_loader import ModelLoader, ModelRead
from deepseek.scheduling.preloading.base import (
    Action,
    Cancel,
    Evict,
    Load,
    ModelState,
    PreloadingPolicy,
    Tier,
    decision_of,
)
from deepseek.scheduling.preloading.base import Residency as Tiers
from deepseek.scheduling.preloading.retry import Bandwidth, RetryEstimate, has_room

logger = logging.getLogger(__name__)

_FIRST_BYTES_PER_S = 400e6
"""What a load is expected to reach before any has been measured: little, for a promise."""
_LOOK_INTERVAL_S = 1.0
"""What is worth loading ahead changes with the time alone."""
_NO_BUDGET = 1 << 62

AdapterCommand = LoadAdapter | DropAdapter


@dataclass(slots=True, eq=False, kw_only=True)
class Place:
    """One model of the pool and where it is."""

    spec: ModelSpec
    model: HostedModel
    state: Residency
    num_bytes: int
    """Of its weights in memory; until it has been loaded once, of its files."""
    info: ModelInfo
    """What the platform was told of it last."""
    loaded_s: float = -math.inf
    """When it became ready."""
    load_s: float | None = None
    """What its last load took that somebody waited for."""
    called_since_s: float | None = None
    """When the first one came that waits without being in the queue: a request that was told to
    come back, or a command."""
    no_room_since_s: float | None = None
    """Since when it is waited for and nothing can make room."""
    is_retired: bool = False
    """Left for being idle: not to be loaded ahead before somebody asks for it again."""
    commands: list[AdapterCommand] = field(default_factory=list)
    """To be carried out when it is there."""
    num_loads: int = 0
    num_evictions: int = 0
    num_hits: int = 0
    num_misses: int = 0

    @property
    def is_pinned(self) -> bool:
        return self.spec.min_resident > 0 or self.model.qos.reserved_share > 0

    @property
    def waiting_since_s(self) -> float | None:
        """When the first one came that waits for it."""
        known = (self.model.waiting_since_s, self.called_since_s)
        return min((since_s for since_s in known if since_s is not None), default=None)

    @property
    def idle_since_s(self) -> float:
        return max(self.loaded_s, self.model.used_s)


@dataclass(slots=True, kw_only=True)
class _Underway:
    """The load that the loader is at."""

    load: Load
    pace: LoadPace
    is_cancelled: bool = False


class Residents:
    """The models of a pool of which some may be absent; every call says what time it is."""

    def __init__(
        self,
        places: Sequence[Place],
        policy: PreloadingPolicy,
        *,
        loader: ModelLoader,
        put: Callable[[AdapterCommand], None],
        send: Callable[[Event], None],
        budget_bytes: int | None = None,
        preload_bytes_per_s: int = 0,
    ) -> None:
        """`put` gives a command that has waited back to the loop.

        `preload_bytes_per_s`: zero loads on demand only.
        """
        self._places = {place.spec.name: place for place in places}
        self._policy = policy
        self._loader = loader
        self._put = put
        self._send = send
        self._budget_bytes = _NO_BUDGET if budget_bytes is None else budget_bytes
        self._preload_bytes_per_s = preload_bytes_per_s
        self._underway: _Underway | None = None
        self._bandwidth = Bandwidth(_FIRST_BYTES_PER_S)
        self._retry = RetryEstimate()
        self._decisions: list[Decision] = []
        self._next_look_s = -math.inf

    # what the step loop tells

    def admit(self, name: str, *, request_id: int, now_s: float) -> Failed | None:
        """Note that a request has come; return its refusal where it could not be answered in time.

        A refused one begins the load all the same: it is told to come back when that has ended.
        """
        place = self._places[name]
        self._policy.observe(name, now_s=now_s)
        place.is_retired = False
        if place.state is Residency.READY:
            place.num_hits += 1
            return None
        place.num_misses += 1
        error: DeepseekError | None = self._lasting_obstacle(place)
        if error is None:
            self._hurry(place)
            error = self._too_late(place, now_s)
        if error is None:
            return None
        if isinstance(error, ModelLoading):
            place.called_since_s = place.called_since_s or now_s
        retry_after_s = error.retry_after_s if isinstance(error, ModelLoading) else None
        return Failed(request_id, error.code, error.message, retry_after_s=retry_after_s)

    def holds_back(self, command: AdapterCommand, *, now_s: float) -> bool:
        """Say whether a command has to wait for its model; it is given back then."""
        place = self._places.get(command.model)
        if place is None or place.state is Residency.READY:
            return False
        if isinstance(command, DropAdapter) and place.state is not Residency.LOADING:
            return False  # it is not there, and the next load will leave it out
        self._hurry(place)
        place.called_since_s = place.called_since_s or now_s
        place.commands.append(command)
        return True

    def look(self, now_s: float, *, is_idle: bool) -> None:
        """Do what is to be done; cheap where nothing has changed.

        `is_idle`: the device has nothing better to do than to load ahead.
        """
        self._retire(now_s)
        is_waited_for = any(
            place.state is not Residency.READY and place.waiting_since_s is not None
            for place in self._places.values()
        )
        if not is_waited_for and now_s < self._next_look_s:
            return
        self._next_look_s = now_s + _LOOK_INTERVAL_S
        while self._underway is None or not self._underway.is_cancelled:
            tiers = self._tiers(now_s, may_preload=is_idle)
            action = self._policy.next_action(tiers, now_s=now_s)
            if action is None:
                self._note_no_room(tiers, now_s)
                return
            self._carry_out(action, now_s)

    def put_in_place(self, read: ModelRead, *, now_s: float) -> list[Failed]:
        """Take what a load has come to; return the answers to those who had waited in vain."""
        place = self._places[read.model]
        underway, self._underway = self._underway, None
        is_waited_for = underway is not None and underway.load.is_on_demand
        self._next_look_s = now_s
        try:
            engine, info = read.outcome.result()
        except LoadCancelled:
            self._become(place, Residency.DISK)
            return []
        except (DeepseekError, OSError) as error:
            return self._fail(place, str(error), now_s)
        except Exception as error:
            logger.exception("model %s could not be loaded", read.model)
            return self._fail(place, f"{EngineFault.code}: {type(error).__name__}", now_s)
        return self._install(place, engine, info, is_waited_for=is_waited_for, now_s=now_s)

    def described(self, load: ModelLoad) -> ModelLoad:
        """Return a model's report with where it is."""
        place = self._places[load.model]
        return replace(
            load,
            residency=place.state,
            weights_bytes=place.num_bytes if place.state is Residency.READY else 0,
            load_s=place.load_s,
            num_loads=place.num_loads,
            num_evictions=place.num_evictions,
            num_hits=place.num_hits,
            num_misses=place.num_misses,
        )

    def take_decisions(self) -> list[Decision]:
        """Return what was decided since the last call."""
        decisions, self._decisions = self._decisions, []
        return decisions

    def close(self) -> None:
        """Load nothing more."""
        self._loader.close()

    # whom it would be no use to wait for

    def _hurry(self, place: Place) -> None:
        """Have a load that was ahead of all requests go on as one that is waited for."""
        underway = self._underway
        if underway is not None and underway.load.model == place.spec.name:
            underway.load = replace(underway.load, is_on_demand=True)
            underway.pace.hurry()

    def _lasting_obstacle(self, place: Place) -> ModelUnavailable | None:
        """Return why there can never be room."""
        kept = sum(
            other.num_bytes
            for other in self._places.values()
            if other is not place and other.is_pinned and other.state is Residency.READY
        )
        left = self._budget_bytes - kept
        if place.num_bytes <= left:
            return None
        return ModelUnavailable(
            f"model {place.spec.name!r} needs {place.num_bytes / 2**20:.0f} MiB for its weights; "
            f"of the pool's weights_bytes {max(0, left) / 2**20:.0f} MiB are not kept for others"
        )

    def _too_late(self, place: Place, now_s: float) -> ModelLoading | None:
        ttft_s = place.model.qos.ttft_s
        if math.isinf(ttft_s):
            return None
        name = place.spec.name
        tiers = self._tiers(now_s, may_preload=False)
        expected_s = self._retry.seconds(tiers, name)
        if expected_s <= ttft_s:
            return None
        return ModelLoading(
            f"model {name!r} is being loaded, for about {expected_s:.1f} s more; its answers are "
            f"due {ttft_s:g} s after a request",
            retry_after_s=self._retry.retry_after_s(tiers, name),
        )

    # what is decided, and done

    def _tiers(self, now_s: float, *, may_preload: bool) -> Tiers:
        underway = self._underway
        return Tiers(
            models=[self._model_state(place) for place in self._places.values()],
            budgets={Tier.DEVICE: self._budget_bytes},
            in_flight=None if underway is None else underway.load,
            in_flight_part=0.0 if underway is None else underway.pace.part,
            may_preload=may_preload and self._preload_bytes_per_s > 0,
        )

    def _model_state(self, place: Place) -> ModelState:
        is_ready = place.state is Residency.READY
        return ModelState(
            name=place.spec.name,
            host_bytes=place.num_bytes,
            device_bytes=place.num_bytes,
            host_s=self._bandwidth.seconds(place.num_bytes)
            if place.load_s is None
            else place.load_s,
            device_s=0.0,
            held=frozenset((Tier.DEVICE,)) if is_ready else frozenset(),
            is_pinned=place.is_pinned,
            is_in_use=place.model.is_in_use,
            waiting_since_s=place.waiting_since_s,
            may_preload=not place.is_retired and place.state is not Residency.FAILED,
        )

    def _retire(self, now_s: float) -> None:
        """Evict what has been idle for longer than it is to be kept."""
        for place in self._places.values():
            keep_alive_s = place.spec.keep_alive_s
            if place.state is not Residency.READY or keep_alive_s is None or place.is_pinned:
                continue
            idle_s = now_s - place.idle_since_s
            if idle_s < keep_alive_s or place.model.is_in_use or place.model.is_being_prepared:
                continue
            place.is_retired = True
            reason = f"nobody has asked for {place.spec.name} for its keep_alive"
            signals = {"idle_s": idle_s, "keep_alive_s": keep_alive_s}
            self._carry_out(
                Evict(model=place.spec.name, tier=Tier.DEVICE, reason=reason, signals=signals),
                now_s,
            )

    def _note_no_room(self, tiers: Tiers, now_s: float) -> None:
        for place in self._places.values():
            is_stuck = place.waiting_since_s is not None and place.state is not Residency.READY
            if is_stuck and not has_room(tiers, tiers.model(place.spec.name)):
                place.no_room_since_s = place.no_room_since_s or now_s

    def _carry_out(self, action: Action, now_s: float) -> None:
        logger.info("%s: %s", action.model, action.reason)
        self._decisions.append(decision_of(action, now_s=now_s))
        place = self._places[action.model]
        match action:
            case Load():
                self._begin(place, action, now_s)
            case Evict():
                self._loader.take_apart(place.model.release())
                place.num_evictions += 1
                self._become(place, Residency.DISK)
            case Cancel():
                if self._underway is not None:
                    self._underway.is_cancelled = True
                    self._underway.pace.cancel()

    def _begin(self, place: Place, load: Load, now_s: float) -> None:
        if place.no_room_since_s is not None:
            self._retry.observe_room(seconds=now_s - place.no_room_since_s)
            place.no_room_since_s = None
        pace = LoadPace(
            bytes_per_s=math.inf if load.is_on_demand else self._preload_bytes_per_s,
            total_bytes=place.num_bytes,
        )
        self._underway = _Underway(load=load, pace=pace)
        self._become(place, Residency.LOADING)
        adapters = [AdapterSpec(name=n, path=path) for n, path in place.model.adapters.items()]
        self._loader.begin(msgspec.structs.replace(place.spec, adapters=adapters), pace)

    # what a load has come to

    def _install(
        self, place: Place, engine: Engine, info: ModelInfo, *, is_waited_for: bool, now_s: float
    ) -> list[Failed]:
        place.num_bytes = info.weights_bytes
        place.num_loads += 1
        place.loaded_s = now_s
        if is_waited_for:
            place.load_s = info.load_s
            self._bandwidth.observe(info.weights_bytes, seconds=info.load_s)
        refused = place.model.take(engine)
        self._decide(
            place,
            "loaded",
            f"{place.spec.name} is ready",
            now_s,
            load_s=info.load_s,
            weights_bytes=info.weights_bytes,
        )
        self._become(place, Residency.READY, info)
        self._give_back_commands(place)
        return refused

    def _fail(self, place: Place, reason: str, now_s: float) -> list[Failed]:
        name = place.spec.name
        logger.error("model %s could not be loaded: %s", name, reason)
        self._decide(place, "load-failed", f"{name} could not be loaded: {reason}", now_s)
        self._become(place, Residency.FAILED)
        error = ModelUnavailable(f"model {name!r} could not be loaded: {reason}")
        failed = place.model.give_up_waiting(error)
        failed += [Failed(command.id, error.code, error.message) for command in place.commands]
        place.commands.clear()
        return failed

    def _give_back_commands(self, place: Place) -> None:
        commands, place.commands = place.commands, []
        for command in commands:
            self._put(command)

    def _decide(
        self, place: Place, action: str, reason: str, now_s: float, **signals: float
    ) -> None:
        self._decisions.append(
            Decision(
                at_s=now_s,
                model=place.spec.name,
                scale=TimeScale.MEDIUM,
                action=action,
                reason=reason,
                signals=signals,
            )
        )

    def _become(self, place: Place, state: Residency, info: ModelInfo | None = None) -> None:
        """Enter a state; whoever waits for a ready or failed model has what there was to have."""
        place.state = state
        if state in (Residency.READY, Residency.FAILED):
            place.called_since_s = None
        place.info = msgspec.structs.replace(info or place.info, residency=state)
        self._send(ModelChanged(place.info))
