import pytest

from deepseek.scheduling.preloading.base import (
    Action,
    Cancel,
    Evict,
    Load,
    ModelState,
    Residency,
    Tier,
)
from deepseek.scheduling.preloading.promises import check_action
from deepseek.scheduling.preloading.registry import make_preloading_policy
from deepseek.scheduling.preloading.simulation import ModelArrival, TierSetup, simulate_tiers
from tests.scheduling.preloading.tiers import BOTH, model, tiers


def setup(*models: ModelState, device: int, **settings: float) -> TierSetup:
    budgets = {Tier.DEVICE: device, Tier.HOST: 1000}
    return TierSetup(models=models, budgets=budgets, **settings)  # type: ignore[arg-type]


def arrival(at_s: float, name: str, service_s: float = 1.0) -> ModelArrival:
    return ModelArrival(at_s=at_s, model=name, service_s=service_s)


def test_a_request_waits_for_the_load_and_the_next_one_hits() -> None:
    outcome = simulate_tiers(
        setup(model("a", 100), device=100),
        [arrival(1.0, "a"), arrival(1.5, "a"), arrival(9.0, "a")],
        make_preloading_policy("lru"),
    )
    assert [r.wait_s for r in outcome.requests] == pytest.approx([1.0, 0.5, 0.0])
    assert [r.is_hit for r in outcome.requests] == [False, False, True]
    assert [r.told_s for r in outcome.requests] == pytest.approx([1.0, 0.5, 0.0])
    assert outcome.hit_rate == pytest.approx(1 / 3)
    assert outcome.moved[Tier.DEVICE].on_demand == 100
    assert outcome.duration_s == pytest.approx(10.0)


def test_a_model_in_use_is_waited_for() -> None:
    outcome = simulate_tiers(
        setup(model("a", 100), model("b", 100), device=100),
        [arrival(0.0, "a", 5.0), arrival(2.0, "b")],
        make_preloading_policy("lru"),
    )
    # a is loaded at 1, runs until 6, b needs one more second.
    assert outcome.requests[1].wait_s == pytest.approx(5.0)
    assert outcome.num_evictions == 1


def test_a_preload_saves_the_wait_and_a_slower_one_part_of_it() -> None:
    arrivals = [arrival(5.0, "a")]
    at_once = setup(model("a", 100), device=100)
    slow = setup(model("a", 100), device=100, preload_speed=0.1)
    full = simulate_tiers(at_once, arrivals, make_preloading_policy("foreseen"))
    part = simulate_tiers(slow, arrivals, make_preloading_policy("foreseen"))
    assert full.requests[0].is_hit
    assert full.moved[Tier.DEVICE].preloaded == 100
    assert not part.requests[0].is_hit
    # Half was there when it came; the rest came at full speed.
    assert part.requests[0].wait_s == pytest.approx(0.5)


def test_a_cancelled_preload_delays_nobody_and_loses_what_it_had_moved() -> None:
    outcome = simulate_tiers(
        setup(model("a", 100), model("b", 100), device=100, preload_speed=0.1),
        [arrival(2.0, "b")],
        make_preloading_policy("foreseen"),
    )
    assert outcome.num_cancelled == 1
    assert outcome.moved[Tier.DEVICE].cancelled == 20  # of a, in 2 of 10 s
    assert outcome.requests[0].wait_s == pytest.approx(1.0)


def test_preloading_in_idle_time_only_stops_while_requests_run() -> None:
    models = (model("a", 100), model("b", 100))
    arrivals = [arrival(0.0, "a", 30.0), arrival(20.0, "b")]
    policy = make_preloading_policy("lru-foreseen")
    idle = simulate_tiers(setup(*models, device=200, preloads_while_busy=False), arrivals, policy)
    always = simulate_tiers(
        setup(*models, device=200), arrivals, make_preloading_policy("lru-foreseen")
    )
    assert not idle.requests[1].is_hit
    assert always.requests[1].is_hit


def test_the_same_arguments_give_the_same_outcome() -> None:
    arrivals = [arrival(float(n % 17) + n, "abc"[n % 3]) for n in range(60)]
    models = setup(*(model(n, 10) for n in "abc"), device=20)
    first, second = (
        simulate_tiers(models, arrivals, make_preloading_policy("foreseen")) for _ in range(2)
    )
    assert first == second


def test_a_policy_that_never_loads_is_found_out() -> None:
    class Idle:
        def observe(self, model: str, *, now_s: float) -> None: ...

        def next_action(self, residency: Residency, *, now_s: float) -> Action | None:
            return None

    with pytest.raises(RuntimeError, match="never loads"):
        simulate_tiers(setup(model("a"), device=10), [arrival(0.0, "a")], Idle())


def test_a_policy_that_comes_to_no_end_is_found_out() -> None:
    class Restless:
        def observe(self, model: str, *, now_s: float) -> None: ...

        def next_action(self, residency: Residency, *, now_s: float) -> Action:
            if residency.in_flight is not None:
                return Cancel(model="a", tier=Tier.DEVICE, reason="")
            return Load(model="a", tier=Tier.DEVICE, is_on_demand=False, reason="")

    with pytest.raises(RuntimeError, match="comes to no end"):
        simulate_tiers(setup(model("a"), device=10), [arrival(1.0, "a")], Restless())


@pytest.mark.parametrize(
    ("action", "residency"),
    [
        (
            Evict(model="a", tier=Tier.DEVICE, reason=""),
            tiers(model("a", held=BOTH, is_pinned=True)),
        ),
        (
            Evict(model="a", tier=Tier.DEVICE, reason=""),
            tiers(model("a", held=BOTH, is_in_use=True)),
        ),
        (Evict(model="a", tier=Tier.DEVICE, reason=""), tiers(model("a"))),
        (
            Load(model="a", tier=Tier.DEVICE, is_on_demand=True, reason=""),
            tiers(model("a", 30), device=29),
        ),
        (
            Load(model="a", tier=Tier.DEVICE, is_on_demand=True, reason=""),
            tiers(model("a", held=BOTH)),
        ),
    ],
)
def test_an_action_that_breaks_a_promise_is_refused(action: Action, residency: Residency) -> None:
    with pytest.raises(RuntimeError, match="a promise is broken"):
        check_action(residency, action)
