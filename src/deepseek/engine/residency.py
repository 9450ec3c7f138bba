"""Which of a pool's models are in memory: loads what is asked for, and what will be; evicts.

The decisions are `deepseek.scheduling.preloading`'s, and `deepseek.engine.moves` carries them out;
this asks for them when something has happened, in the step loop's thread. On a CPU the host's
memory is the device: there is one tier. A GPU may have the host's memory as a second one, from
which models come back in a fraction of the time.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from deepseek.core.decisions import Decision
from deepseek.core.errors import DeepseekError, ModelLoading
from deepseek.core.load import ModelLoad
from deepseek.core.residency import Residency
from deepseek.core.wire import DropAdapter, Event, Failed
from deepseek.engine.model_loader import ModelLoader, ModelRead
from deepseek.engine.moves import Moves
from deepseek.engine.outlook import Outlook, TierSizes
from deepseek.engine.place import AdapterCommand, Place
from deepseek.scheduling.preloading.base import (
    Action,
    Cancel,
    Evict,
    Load,
    PreloadingPolicy,
    Tier,
    decision_of,
)
from deepseek.scheduling.preloading.base import Residency as Tiers

logger = logging.getLogger(__name__)

_LOOK_INTERVAL_S = 1.0
"""What is worth loading ahead changes with the time alone."""


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
        sizes: TierSizes,
        preload_bytes_per_s: int = 0,
    ) -> None:
        """`put` gives a command that has waited back to the loop.

        `preload_bytes_per_s`: zero loads on demand only.
        """
        self._places = {place.name: place for place in places}
        self._policy = policy
        self._loader = loader
        self._may_preload = preload_bytes_per_s > 0
        self._decisions: list[Decision] = []
        self._outlook = Outlook(self._places, sizes)
        self._moves = Moves(
            loader,
            self._outlook,
            put=put,
            send=send,
            tell=lambda decision: self._decisions.append(decision),
            preload_bytes_per_s=preload_bytes_per_s,
        )
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
        error: DeepseekError | None = self._outlook.obstacle(place)
        if error is None:
            self._moves.hurry(place)
            error = self._outlook.lateness(place, self._tiers(may_preload=False))
        if error is None:
            return None
        retry_after_s = None
        if isinstance(error, ModelLoading):
            place.called_since_s = place.called_since_s or now_s
            retry_after_s = error.retry_after_s
        return Failed(request_id, error.code, error.message, retry_after_s=retry_after_s)

    def holds_back(self, command: AdapterCommand, *, now_s: float) -> bool:
        """Say whether a command has to wait for its model; it is given back then."""
        place = self._places.get(command.model)
        if place is None or place.state is Residency.READY:
            return False
        if isinstance(command, DropAdapter) and place.state is not Residency.LOADING:
            return False  # it is not there, and when it comes it will be without
        self._moves.hurry(place)
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
        while self._moves.underway is None or not self._moves.underway.is_cancelled:
            tiers = self._tiers(may_preload=is_idle)
            action = self._policy.next_action(tiers, now_s=now_s)
            if action is None:
                self._outlook.note_no_room(tiers, now_s)
                return
            self._carry_out(action, now_s)

    def put_in_place(self, read: ModelRead, *, now_s: float) -> list[Failed]:
        """Take what a load has come to; return the answers to those who had waited in vain."""
        self._next_look_s = now_s
        return self._moves.land(read, now_s=now_s)

    def described(self, load: ModelLoad) -> ModelLoad:
        """Return a model's report with where it is."""
        place = self._places[load.model]
        held = place.held
        host_bytes = place.num_bytes if Tier.HOST in held else 0
        return replace(
            load,
            residency=place.state,
            weights_bytes=place.num_bytes if Tier.DEVICE in held else 0,
            host_weights_bytes=host_bytes if self._outlook.has_host_tier else None,
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

    # what is decided, and done

    def _tiers(self, *, may_preload: bool) -> Tiers:
        underway = self._moves.underway
        return self._outlook.tiers(
            in_flight=None if underway is None else underway.load,
            part=0.0 if underway is None else underway.pace.part,
            may_preload=may_preload and self._may_preload,
        )

    def _retire(self, now_s: float) -> None:
        """Evict from the device what has been idle for longer than it is to be kept."""
        for place in self._places.values():
            keep_alive_s = place.spec.keep_alive_s
            if place.state is not Residency.READY or keep_alive_s is None or place.is_pinned:
                continue
            idle_s = now_s - place.idle_since_s
            if idle_s < keep_alive_s or place.model.is_in_use or place.model.is_being_prepared:
                continue
            place.is_retired = True
            reason = f"nobody has asked for {place.name} for its keep_alive"
            signals = {"idle_s": idle_s, "keep_alive_s": keep_alive_s}
            self._carry_out(
                Evict(model=place.name, tier=Tier.DEVICE, reason=reason, signals=signals), now_s
            )

    def _carry_out(self, action: Action, now_s: float) -> None:
        logger.info("%s: %s", action.model, action.reason)
        self._decisions.append(decision_of(action, now_s=now_s))
        place = self._places[action.model]
        match action:
            case Load():
                self._moves.begin(place, action, now_s=now_s)
            case Evict():
                self._moves.evict(place, action)
            case Cancel():
                self._moves.cancel()
