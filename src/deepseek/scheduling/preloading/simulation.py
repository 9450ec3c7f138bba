"""Replays arrivals over a preloading policy with a virtual clock: tiers and a loader, no weights.

A request holds its model on the device for its service time, any number of them beside one another.
The loader does one load at a time and ends a cancelled one at once; what that had moved is lost.
The simulator checks at every action that budgets and promises are kept. The same arguments give
the same outcome.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from deepseek.scheduling.preloading.base import (
    Action,
    Cancel,
    Evict,
    Load,
    ModelState,
    PreloadingPolicy,
    Residency,
    Tier,
)
from deepseek.scheduling.preloading.promises import check_action
from deepseek.scheduling.preloading.retry import RetryEstimate, has_room
from deepseek.scheduling.preloading.simulated_loader import MovedBytes, SimulatedLoader

_MAX_ACTIONS = 1000
"""Actions at one moment: a policy that wants more never comes to an end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelArrival:
    """One request of a workload."""

    at_s: float
    model: str
    service_s: float
    """How long it runs, once its model is on the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSetup:
    """What is simulated."""

    models: Sequence[ModelState]
    """As they are at the beginning."""
    budgets: Mapping[Tier, int]
    preload_speed: float = 1.0
    """Of a preload, as a part of the speed of a load on demand: the rate limit."""
    preloads_while_busy: bool = True
    """False: only while no request runs."""
    tick_s: float = 1.0
    """How often the policy is asked while nothing happens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutcome:
    """One request, in the order of arrival."""

    model: str
    is_hit: bool
    """Its model was on the device when it came."""
    wait_s: float
    """Until its model was on the device."""
    told_s: float
    """What a Retry-After would have said when it came; 0 for a hit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierOutcome:
    """What became of a simulated run."""

    requests: Sequence[RequestOutcome]
    moved: Mapping[Tier, MovedBytes]
    num_evictions: int
    num_cancelled: int
    duration_s: float

    @property
    def hit_rate(self) -> float:
        """The part of the requests that found their model on the device; NaN of none."""
        num_hits = sum(request.is_hit for request in self.requests)
        return num_hits / len(self.requests) if self.requests else math.nan


def simulate_tiers(
    setup: TierSetup, arrivals: Sequence[ModelArrival], policy: PreloadingPolicy
) -> TierOutcome:
    """Run all arrivals to their end and return what became of them.

    Raises `RuntimeError` where the policy breaks a promise, or never loads what is waited for.
    """
    return _Tiers(setup, sorted(arrivals, key=lambda a: a.at_s), policy).run()


@dataclass(slots=True, kw_only=True)
class _Requests:
    """One model's."""

    waiting: list[int] = field(default_factory=list)
    num_running: int = 0


class _Tiers:
    """The loop: an event, then what the policy makes of it."""

    def __init__(
        self, setup: TierSetup, arrivals: Sequence[ModelArrival], policy: PreloadingPolicy
    ) -> None:
        self._setup = setup
        self._arrivals = arrivals
        self._policy = policy
        self._states = {model.name: model for model in setup.models}
        self._requests = {model.name: _Requests() for model in setup.models}
        self._retry = RetryEstimate()
        self._loader = SimulatedLoader(preload_speed=setup.preload_speed)
        self._outcomes: list[RequestOutcome | None] = [None] * len(arrivals)
        self._told: dict[int, float] = {}
        self._no_room_since_s: dict[str, float] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._orders = itertools.count()
        self._num_running = 0
        self._num_open = len(arrivals)
        self._num_evictions = self._num_cancelled = 0
        self._now_s = 0.0

    def run(self) -> TierOutcome:
        for index, arrival in enumerate(self._arrivals):
            self._at(arrival.at_s, partial(self._arrive, index))
        self._at(0.0, self._tick)
        while self._num_open:
            self._now_s, _, event = heapq.heappop(self._events)
            event()
            self._act()
        return TierOutcome(
            requests=[outcome for outcome in self._outcomes if outcome is not None],
            moved=self._loader.moved,
            num_evictions=self._num_evictions,
            num_cancelled=self._num_cancelled,
            duration_s=self._now_s,
        )

    def _at(self, at_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._orders), event))

    # events

    def _arrive(self, index: int) -> None:
        model = self._arrivals[index].model
        self._policy.observe(model, now_s=self._now_s)
        if Tier.DEVICE in self._states[model].held:
            self._serve(index, is_hit=True)
            self._describe(model)
            return
        residency = self._residency()
        self._told[index] = self._retry.seconds(residency, model)
        if not has_room(residency, self._states[model]):
            self._no_room_since_s.setdefault(model, self._now_s)
        self._requests[model].waiting.append(index)
        self._describe(model)
        load = self._loader.load
        if load is not None and load.model == model and not load.is_on_demand:
            self._await_load(self._loader.hurry(self._now_s, self._states[model]))

    def _served(self, index: int) -> None:
        model = self._arrivals[index].model
        self._requests[model].num_running -= 1
        self._num_running -= 1
        self._num_open -= 1
        self._describe(model)

    def _loaded(self, number: int) -> None:
        load = self._loader.load
        if load is None or number != self._loader.number:
            return  # it was cancelled, or hurried
        state = self._states[load.model]
        held = self._loader.finish(state)
        self._states[load.model] = replace(state, held=state.held | held)
        if Tier.DEVICE in held:
            requests = self._requests[load.model]
            for index in requests.waiting:
                self._serve(index, is_hit=False)
            requests.waiting.clear()
        self._describe(load.model)

    def _tick(self) -> None:
        is_over = self._loader.load is None and not self._events
        if is_over and any(requests.waiting for requests in self._requests.values()):
            raise RuntimeError("the policy never loads what is waited for")
        self._at(self._now_s + self._setup.tick_s, self._tick)

    def _serve(self, index: int, *, is_hit: bool) -> None:
        arrival = self._arrivals[index]
        self._outcomes[index] = RequestOutcome(
            model=arrival.model,
            is_hit=is_hit,
            wait_s=self._now_s - arrival.at_s,
            told_s=self._told.pop(index, 0.0),
        )
        self._requests[arrival.model].num_running += 1
        self._num_running += 1
        self._at(self._now_s + arrival.service_s, partial(self._served, index))

    # actions

    def _act(self) -> None:
        for _ in range(_MAX_ACTIONS):
            residency = self._residency()
            action = self._policy.next_action(residency, now_s=self._now_s)
            if action is None:
                return
            check_action(residency, action)
            self._do(action)
        raise RuntimeError(f"the policy comes to no end at {self._now_s:g} s")

    def _do(self, action: Action) -> None:
        state = self._states[action.model]
        match action:
            case Load():
                self._await_load(self._loader.begin(action, state, self._now_s))
                if action.model in self._no_room_since_s:
                    since_s = self._no_room_since_s.pop(action.model)
                    self._retry.observe_room(seconds=self._now_s - since_s)
            case Evict():
                self._states[action.model] = replace(state, held=state.held - {action.tier})
                self._num_evictions += 1
            case Cancel():
                self._loader.cancel(self._now_s, state)
                self._num_cancelled += 1

    def _await_load(self, ends_s: float) -> None:
        self._at(ends_s, partial(self._loaded, self._loader.number))

    def _describe(self, model: str) -> None:
        requests = self._requests[model]
        waiting = requests.waiting
        self._states[model] = replace(
            self._states[model],
            is_in_use=requests.num_running > 0,
            waiting_since_s=self._arrivals[waiting[0]].at_s if waiting else None,
        )

    def _residency(self) -> Residency:
        return Residency(
            models=list(self._states.values()),
            budgets=self._setup.budgets,
            in_flight=self._loader.load,
            in_flight_part=self._loader.part(self._now_s),
            may_preload=self._setup.preloads_while_busy or not self._num_running,
        )
