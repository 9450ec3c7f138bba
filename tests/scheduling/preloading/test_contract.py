"""What every preloading policy promises, over any tiers, requests and workloads."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.scheduling.preloading.base import (
    Cancel,
    Evict,
    Load,
    ModelState,
    PreloadingPolicy,
    Residency,
    Tier,
)
from deepseek.scheduling.preloading.preloader import waited_for
from deepseek.scheduling.preloading.registry import (
    make_preloading_policy,
    preloading_policy_names,
)
from deepseek.scheduling.preloading.simulation import (
    ModelArrival,
    TierSetup,
    simulate_tiers,
)
from tests.scheduling.preloading.tiers import (
    BOTH,
    HOST,
    after,
    any_tiers,
    model,
    observed,
    requests,
    settle,
    settled,
    tiers,
)

pytestmark = pytest.mark.parametrize("name", preloading_policy_names())


@given(residency=any_tiers(), asked=requests)
@settings(deadline=None, max_examples=150)
def test_actions_come_to_an_end_and_then_there_is_none(
    name: str, residency: Residency, asked: list[tuple[str, float]]
) -> None:
    policy = make_preloading_policy(name)
    now_s = observed(policy, asked)
    residency = settled(policy, residency, now_s=now_s)
    assert policy.next_action(residency, now_s=now_s) is None


@given(residency=any_tiers(), asked=requests)
@settings(deadline=None, max_examples=150)
def test_no_budget_is_ever_exceeded(
    name: str, residency: Residency, asked: list[tuple[str, float]]
) -> None:
    policy = make_preloading_policy(name)
    for before, action in settle(policy, residency, now_s=observed(policy, asked)):
        now = after(before, action)
        for tier in (Tier.HOST, Tier.DEVICE):
            held = sum(m.bytes_in(tier) for m in now.models if tier in m.held)
            assert held <= now.budgets.get(tier, 0)


@given(residency=any_tiers(), asked=requests)
@settings(deadline=None, max_examples=150)
def test_nothing_pinned_and_nothing_in_use_or_waited_for_leaves_the_device(
    name: str, residency: Residency, asked: list[tuple[str, float]]
) -> None:
    policy = make_preloading_policy(name)
    for before, action in settle(policy, residency, now_s=observed(policy, asked)):
        if isinstance(action, Evict):
            victim = before.model(action.model)
            assert not victim.is_pinned
            if action.tier is Tier.DEVICE:
                assert not victim.is_in_use
                assert victim.waiting_since_s is None


@given(residency=any_tiers(), asked=requests)
@settings(deadline=None, max_examples=150)
def test_while_somebody_waits_nothing_is_preloaded(
    name: str, residency: Residency, asked: list[tuple[str, float]]
) -> None:
    policy = make_preloading_policy(name)
    for before, action in settle(policy, residency, now_s=observed(policy, asked)):
        if waited_for(before) and isinstance(action, Load):
            assert action.is_on_demand
            assert before.model(action.model).waiting_since_s is not None


@given(residency=any_tiers(), asked=requests)
@settings(deadline=None, max_examples=150)
def test_who_waits_is_loaded_wherever_there_can_be_room(
    name: str, residency: Residency, asked: list[tuple[str, float]]
) -> None:
    policy = make_preloading_policy(name)
    end = settled(policy, residency, now_s=observed(policy, asked))
    room = end.free_bytes(Tier.DEVICE) + sum(
        m.device_bytes for m in end.models if m.is_evictable(Tier.DEVICE)
    )
    assert all(m.device_bytes > room for m in waited_for(end))


@given(residency=any_tiers(), asked=requests, data=st.data())
@settings(deadline=None, max_examples=150)
def test_a_preload_under_way_makes_way_at_once(
    name: str, residency: Residency, asked: list[tuple[str, float]], data: st.DataObject
) -> None:
    policy = make_preloading_policy(name)
    now_s = observed(policy, asked)
    absent = [m for m in residency.models if not m.held and m.waiting_since_s is None]
    if not absent:
        return
    preloaded = data.draw(st.sampled_from(absent))
    load = Load(model=preloaded.name, tier=Tier.DEVICE, is_on_demand=False, reason="likely")
    under_way = replace(residency, in_flight=load)
    without = policy.next_action(residency, now_s=now_s)
    action = policy.next_action(under_way, now_s=now_s)
    somebody_can_load = bool(waited_for(residency)) and without is not None
    assert isinstance(action, Cancel) == somebody_can_load
    if isinstance(action, Cancel):
        assert (action.model, action.tier) == (preloaded.name, Tier.DEVICE)
        assert after(under_way, action) == residency


def test_a_preload_that_somebody_begins_to_wait_for_goes_on(name: str) -> None:
    policy = make_preloading_policy(name)
    load = Load(model="a", tier=Tier.DEVICE, is_on_demand=False, reason="likely")
    residency = replace(
        tiers(model("a", waiting_since_s=1.0), model("b", held=BOTH)), in_flight=load
    )
    assert policy.next_action(residency, now_s=1.0) is None


def test_a_load_on_demand_under_way_is_not_cancelled(name: str) -> None:
    policy = make_preloading_policy(name)
    load = Load(model="a", tier=Tier.DEVICE, is_on_demand=True, reason="waits")
    residency = replace(
        tiers(model("a", waiting_since_s=2.0), model("b", waiting_since_s=1.0)), in_flight=load
    )
    assert policy.next_action(residency, now_s=3.0) is None


def test_the_longest_waiting_is_loaded_first(name: str) -> None:
    policy = make_preloading_policy(name)
    residency = tiers(model("a", waiting_since_s=2.0), model("b", waiting_since_s=1.0))
    loads = [action.model for _, action in settle(policy, residency, now_s=3.0)]
    assert loads == ["b", "a"]


def test_one_that_finds_no_room_holds_up_nobody(name: str) -> None:
    policy = make_preloading_policy(name)
    residency = tiers(
        model("large", 20, waiting_since_s=1.0),
        model("small", 5, waiting_since_s=2.0),
        model("busy", 12, held=BOTH, is_in_use=True),
    )
    actions = [action for _, action in settle(policy, residency, now_s=3.0)]
    assert [(type(action), action.model) for action in actions] == [(Load, "small")]


def test_a_budget_that_was_lowered_is_kept_again(name: str) -> None:
    policy = make_preloading_policy(name)
    residency = tiers(*(model(n, held=BOTH) for n in "abcd"), device=20, host=25)
    end = settled(policy, residency, now_s=0.0)
    assert end.free_bytes(Tier.DEVICE) >= 0
    assert end.free_bytes(Tier.HOST) >= 0


arrivals = st.lists(
    st.builds(
        ModelArrival,
        at_s=st.floats(0, 50),
        model=st.sampled_from("abcde"),
        service_s=st.floats(0, 5),
    ),
    max_size=40,
)


@st.composite
def setups(draw: st.DrawFn) -> TierSetup:
    sizes = {name: draw(st.integers(1, 10)) for name in "abcde"}
    pinned = draw(st.sampled_from((None, *"abcde")))
    largest = max(sizes.values())
    room_for_pinned = sizes[pinned] if pinned else 0
    models: list[ModelState] = [
        model(n, size, held=frozenset(), is_pinned=n == pinned) for n, size in sizes.items()
    ]
    return TierSetup(
        models=models,
        budgets={
            Tier.DEVICE: largest + room_for_pinned + draw(st.integers(0, 20)),
            **({Tier.HOST: draw(st.integers(0, 50))} if draw(st.booleans()) else {}),
        },
        preload_speed=draw(st.floats(0.1, 1.0)),
        preloads_while_busy=draw(st.booleans()),
    )


@given(setup=setups(), arrived=arrivals)
@settings(deadline=None, max_examples=60)
def test_over_time_every_request_is_served_and_every_promise_kept(
    name: str, setup: TierSetup, arrived: list[ModelArrival]
) -> None:
    """The simulator refuses an action that breaks one, and an eviction before those waiting ran."""
    outcome = simulate_tiers(setup, arrived, make_preloading_policy(name))
    assert len(outcome.requests) == len(arrived)
    assert all(request.wait_s == 0 for request in outcome.requests if request.is_hit)


@given(setup=setups(), arrived=arrivals)
@settings(deadline=None, max_examples=40)
def test_a_load_on_demand_waits_for_loads_on_demand_only(
    name: str, setup: TierSetup, arrived: list[ModelArrival]
) -> None:
    policy = _Watched(make_preloading_policy(name))
    simulate_tiers(setup, arrived, policy)
    assert policy.num_behind == 0


class _Watched:
    """Counts the times that the policy leaves a preload to go on before one who could be loaded."""

    def __init__(self, policy: PreloadingPolicy) -> None:
        self._policy = policy
        self.num_behind = 0

    def observe(self, model: str, *, now_s: float) -> None:
        self._policy.observe(model, now_s=now_s)

    def next_action(self, residency: Residency, *, now_s: float) -> object:
        action = self._policy.next_action(residency, now_s=now_s)
        load = residency.in_flight
        needs = waited_for(residency)
        if action is None and load is not None and not load.is_on_demand:
            is_own = any(load.model == need.name for need in needs)
            free = replace(residency, in_flight=None)
            room = free.free_bytes(Tier.DEVICE) + sum(
                m.device_bytes for m in free.models if m.is_evictable(Tier.DEVICE)
            )
            could_load = any(need.device_bytes <= room for need in needs)
            self.num_behind += could_load and not is_own
        return action


def test_it_can_be_asked_about_models_that_it_has_never_heard_of(name: str) -> None:
    policy = make_preloading_policy(name)
    policy.observe("gone", now_s=0.0)
    assert settled(policy, tiers(model("a", held=HOST)), now_s=1.0) is not None
