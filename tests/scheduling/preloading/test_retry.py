from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.scheduling.preloading.base import Load, Tier
from deepseek.scheduling.preloading.retry import Bandwidth, RetryEstimate
from tests.scheduling.preloading.tiers import BOTH, any_tiers, model, tiers


def on_demand(name: str) -> Load:
    return Load(model=name, tier=Tier.DEVICE, is_on_demand=True, reason="waits")


def test_a_model_on_the_device_is_ready_now() -> None:
    residency = tiers(model("a", held=BOTH))
    assert RetryEstimate().seconds(residency, "a") == 0
    assert RetryEstimate().retry_after_s(residency, "a") == 1


def test_what_is_on_disk_takes_both_ways_what_is_in_the_host_tier_one() -> None:
    residency = tiers(model("disk", 100, held=frozenset()), model("host", 100), device=200)
    assert RetryEstimate().seconds(residency, "disk") == pytest.approx(11.0)
    assert RetryEstimate().retry_after_s(residency, "disk") == 11
    assert RetryEstimate().seconds(residency, "host") == pytest.approx(1.0)


def test_loads_of_those_who_wait_longer_come_first() -> None:
    residency = tiers(
        model("first", 100, waiting_since_s=1.0),
        model("second", 200, waiting_since_s=2.0),
        model("last", 300, waiting_since_s=3.0),
        model("new", 400),
        device=1000,
    )
    estimate = RetryEstimate()
    assert estimate.seconds(residency, "second") == pytest.approx(1 + 2)
    assert estimate.seconds(residency, "new") == pytest.approx(1 + 2 + 3 + 4)


def test_what_is_done_of_the_load_under_way_is_not_waited_for_again() -> None:
    residency = replace(
        tiers(model("a", 100, waiting_since_s=1.0), model("b", 100), device=200),
        in_flight=on_demand("a"),
        in_flight_part=0.75,
    )
    assert RetryEstimate().seconds(residency, "a") == pytest.approx(0.25)
    assert RetryEstimate().seconds(residency, "b") == pytest.approx(0.25 + 1)


def test_a_preload_under_way_is_not_waited_for_unless_it_is_the_models_own() -> None:
    preload = replace(on_demand("a"), is_on_demand=False)
    residency = replace(
        tiers(model("a", 100), model("b", 100), device=200), in_flight=preload, in_flight_part=0.5
    )
    assert RetryEstimate().seconds(residency, "b") == pytest.approx(1)
    assert RetryEstimate().seconds(residency, "a") == pytest.approx(0.5)


def test_a_device_full_of_running_requests_adds_the_usual_wait_for_room() -> None:
    busy = tiers(model("busy", held=BOTH, is_in_use=True), model("a"), device=10)
    idle = tiers(model("idle", held=BOTH), model("a"), device=10)
    estimate = RetryEstimate()
    for _ in range(50):
        estimate.observe_room(seconds=4.0)
    assert estimate.seconds(idle, "a") == pytest.approx(0.1)
    assert estimate.seconds(busy, "a") == pytest.approx(4.1)


@given(any_tiers(), st.lists(st.floats(0, 100), max_size=5))
def test_nobody_is_told_less_than_the_models_own_load(
    residency: object, waits: list[float]
) -> None:
    estimate = RetryEstimate()
    for seconds in waits:
        estimate.observe_room(seconds=seconds)
    for state in residency.models:  # type: ignore[attr-defined]
        told_s = estimate.seconds(residency, state.name)  # type: ignore[arg-type]
        if Tier.DEVICE in state.held:
            assert told_s == 0
        else:
            assert told_s >= state.load_s(Tier.DEVICE) - 1e-9


def test_a_disk_that_became_slow_is_believed_after_a_few_loads() -> None:
    disk = Bandwidth(1000.0)
    assert disk.seconds(5000) == pytest.approx(5.0)
    for _ in range(100):
        disk.observe(10_000, seconds=10.0)
    assert disk.bytes_per_s == pytest.approx(1000.0)
    for _ in range(20):
        disk.observe(10_000, seconds=100.0)
    assert disk.bytes_per_s == pytest.approx(100.0, rel=0.2)


def test_a_guess_counts_as_one_load() -> None:
    disk = Bandwidth(1000.0)
    disk.observe(1000, seconds=9.0)
    assert 100 < disk.bytes_per_s < 300


def test_a_load_of_nothing_teaches_nothing() -> None:
    disk = Bandwidth(1000.0)
    disk.observe(0, seconds=1.0)
    disk.observe(10, seconds=0.0)
    assert disk.bytes_per_s == 1000.0


@pytest.mark.parametrize("guess", [0.0, -1.0, float("inf"), float("nan")])
def test_a_guess_that_is_no_bandwidth_is_refused(guess: float) -> None:
    with pytest.raises(ValueError, match="a bandwidth of"):
        Bandwidth(guess)
