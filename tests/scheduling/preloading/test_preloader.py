"""The rules that the policies share, with a ranking that is given."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest

from deepseek.core.decisions import TimeScale
from deepseek.core.errors import ConfigurationError
from deepseek.scheduling.preloading.base import (
    Action,
    Cancel,
    Evict,
    Load,
    ModelState,
    Residency,
    Tier,
    decision_of,
)
from deepseek.scheduling.preloading.preloader import RankedPreloader
from deepseek.scheduling.preloading.registry import make_preloading_policy
from tests.scheduling.preloading.tiers import BOTH, DEVICE, model, settle, settled, tiers

NOWHERE: frozenset[Tier] = frozenset()


class Given:
    """Worth by the byte, as the test says."""

    def __init__(self, worth: Mapping[str, float]) -> None:
        self._worth = worth

    def meet(self, models: Iterable[str]) -> None: ...

    def observe(self, model: str, *, now_s: float) -> None: ...

    def worth(self, model: ModelState, tier: Tier, *, now_s: float) -> float:
        return self._worth[model.name]

    def note_evicted(self, worth: float, tier: Tier) -> None: ...


EVEN = Given(dict.fromkeys("abc", 1.0))


def steps(residency: Residency, **worth: float) -> list[str]:
    """Return what is done with these worths, as words."""
    ranking = Given(worth)
    policy = RankedPreloader(eviction=ranking, preloading=ranking, margin=1.25)
    return [words(action) for _, action in settle(policy, residency, now_s=0.0)]


def words(action: Action) -> str:
    return f"{decision_of(action, now_s=0.0).action} {action.model} {action.tier}"


def test_free_room_is_filled_with_the_most_worth_first() -> None:
    residency = tiers(model("a"), model("b"), model("c"), device=20)
    assert steps(residency, a=1, b=3, c=2) == ["preload b device", "preload c device"]


def test_what_has_no_way_to_the_host_tier_gets_there_by_the_device_only() -> None:
    there, blocked = model("a", held=DEVICE), replace(model("b"), held=NOWHERE)
    open_way = tiers(there, blocked, device=10, host=10)
    assert steps(open_way, a=3, b=1) == ["preload b host"]
    shut = tiers(there, replace(blocked, has_way_to_host=False), device=10, host=10)
    assert steps(shut, a=3, b=1) == []
    wanted = tiers(model("a"), replace(blocked, has_way_to_host=False), device=20, host=20)
    assert steps(wanted, a=3, b=1) == ["preload a device", "preload b device"]


def test_a_preload_displaces_what_is_worth_less_by_the_margin() -> None:
    residency = tiers(model("a", held=BOTH), model("b"), device=10)
    assert steps(residency, a=1.0, b=1.2) == []
    assert steps(residency, a=1.0, b=1.3) == ["evict a device", "preload b device"]


def test_a_small_model_does_not_displace_a_large_one_that_is_worth_more_in_all() -> None:
    residency = tiers(model("large", 40, held=BOTH), model("small", 5), device=40)
    assert steps(residency, large=1.0, small=4.0) == []
    assert steps(residency, large=1.0, small=12.0) == ["evict large device", "preload small device"]


def test_a_large_model_displaces_several_only_if_worth_more_than_each() -> None:
    residency = tiers(model("a", held=BOTH), model("b", held=BOTH), model("large", 20), device=20)
    assert steps(residency, a=0.1, b=3.0, large=2.5) == []
    assert steps(residency, a=1.0, b=1.5, large=2.5) == [
        "evict a device",
        "evict b device",
        "preload large device",
    ]


def test_no_more_is_evicted_than_needed() -> None:
    """The least worth would not be enough, and is not needed beside the next one."""
    residency = tiers(
        model("tiny", 2, held=BOTH),
        model("medium", 10, held=BOTH),
        model("new", 10, waiting_since_s=0.0),
        device=12,
    )
    assert steps(residency, tiny=1.0, medium=2.0, new=9.0) == [
        "evict medium device",
        "load new device",
    ]


def test_what_is_pinned_is_loaded_first_and_makes_room_for_itself() -> None:
    residency = tiers(model("popular", held=BOTH), model("pinned", is_pinned=True), device=10)
    assert steps(residency, popular=9.0, pinned=0.1) == [
        "evict popular device",
        "preload pinned device",
    ]


def test_what_is_scaled_to_zero_comes_back_on_demand_only() -> None:
    asleep = model("asleep", may_preload=False)
    assert steps(tiers(asleep), asleep=9.0) == []
    assert steps(tiers(replace(asleep, waiting_since_s=0.0)), asleep=9.0) == ["load asleep device"]


def test_nothing_is_preloaded_while_the_device_has_better_to_do() -> None:
    residency = replace(tiers(model("a"), model("b", waiting_since_s=0.0)), may_preload=False)
    assert steps(residency, a=2.0, b=1.0) == ["load b device"]


def test_a_preload_from_disk_fills_the_host_tier_on_its_way() -> None:
    residency = tiers(*(model(n, held=NOWHERE) for n in "abc"), device=10, host=25)
    assert steps(residency, a=3.0, b=2.0, c=1.0) == ["preload a device", "preload b host"]
    load = RankedPreloader(eviction=EVEN, preloading=EVEN).next_action(residency, now_s=0.0)
    assert isinstance(load, Load)
    assert load.fills_host


def test_device_and_host_tier_hold_different_models_where_memory_is_scarce() -> None:
    residency = tiers(*(model(n, held=NOWHERE) for n in "abc"), device=10, host=20)
    end = settled(make_preloading_policy("foreseen"), residency, now_s=0.0)
    assert {state.tier for state in end.models} == {Tier.DEVICE, Tier.HOST}


def test_a_load_on_demand_from_disk_leaves_a_host_copy_where_there_is_room() -> None:
    cold = model("cold", held=NOWHERE, waiting_since_s=0.0)
    ranking = Given({"cold": 1.0, "warm": 2.0})
    policy = RankedPreloader(eviction=ranking, preloading=None)
    roomy = policy.next_action(tiers(cold, model("warm"), host=20), now_s=0.0)
    assert isinstance(roomy, Load)
    assert roomy.fills_host
    full = policy.next_action(tiers(cold, model("warm"), host=10), now_s=0.0)
    assert isinstance(full, Load)
    assert not full.fills_host  # what is there is worth more


def test_a_load_on_demand_displaces_host_copies_that_are_worth_less() -> None:
    cold = model("cold", held=NOWHERE, waiting_since_s=0.0)
    policy = RankedPreloader(eviction=Given({"cold": 2.0, "old": 1.0}), preloading=None)
    residency = tiers(cold, model("old"), host=10)
    done = [words(action) for _, action in settle(policy, residency, now_s=0.0)]
    assert done == ["evict old host", "load cold device"]


def test_without_a_host_tier_models_go_from_disk_to_the_device() -> None:
    residency = tiers(model("a", held=NOWHERE), model("b", held=DEVICE), device=10, host=None)
    assert steps(residency, a=2.0, b=1.0) == ["evict b device", "preload a device"]


def test_actions_say_why_in_plain_words() -> None:
    ranking = Given({"a": 1.0, "b": 2.0})
    policy = RankedPreloader(eviction=ranking, preloading=ranking)
    residency = tiers(model("a", held=BOTH), model("b", waiting_since_s=0.0), device=10)
    evict = policy.next_action(residency, now_s=5.0)
    assert isinstance(evict, Evict)
    decision = decision_of(evict, now_s=5.0)
    assert decision.reason == "a request waits for b, which needs the room"
    assert decision.signals == {"tier": "device", "worth": 1.0}
    assert (decision.at_s, decision.model, decision.scale) == (5.0, "a", TimeScale.MEDIUM)


def test_a_cancelled_preload_names_who_waits() -> None:
    ranking = Given({"a": 1.0, "b": 2.0})
    policy = RankedPreloader(eviction=ranking, preloading=ranking)
    load = Load(model="a", tier=Tier.DEVICE, is_on_demand=False, reason="likely")
    residency = replace(tiers(model("a"), model("b", waiting_since_s=0.0)), in_flight=load)
    cancel = policy.next_action(residency, now_s=0.0)
    assert isinstance(cancel, Cancel)
    assert cancel.reason == "a request waits for the load of b"


def test_an_unknown_policy_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'fifo' is unknown; known: .*foreseen.*lru"):
        make_preloading_policy("fifo")


@pytest.mark.parametrize("name", ["foreseen", "lru-foreseen", "gdsf-foreseen"])
@pytest.mark.parametrize(("wanted", "held"), [(4, 3), (7, 5), (8, 6)])
def test_the_first_look_at_models_judges_them_as_the_second_does(
    name: str, wanted: int, held: int
) -> None:
    policy = make_preloading_policy(name)
    policy.observe("d", now_s=1.0)
    residency = tiers(
        model("a", held, held=DEVICE),
        model("b", 50, held=NOWHERE),
        model("c", 50, held=NOWHERE),
        model("d", wanted, held=NOWHERE),
        device=max(wanted, held),
        host=None,
    )
    assert policy.next_action(residency, now_s=1.0) == policy.next_action(residency, now_s=1.0)
