import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.scheduling.preloading.demand import Demand, Popularity, Timing
from tests.scheduling.preloading.tiers import requests


@given(requests, st.floats(0, 1e6))
def test_shares_of_all_models_sum_to_one_and_none_is_nought(
    asked: list[tuple[str, float]], pause_s: float
) -> None:
    demand, now_s = Demand(), 0.0
    for model, gap_s in asked:
        now_s += gap_s
        demand.observe(model, now_s=now_s)
    now_s += pause_s
    models = {model for model, _ in asked} | {"never"}
    demand.share("never", now_s=now_s)
    shares = [demand.share(model, now_s=now_s) for model in models]
    assert all(share > 0 for share in shares)
    assert sum(shares) == pytest.approx(1)
    assert 0 < demand.trust < 1


def test_where_all_models_come_in_the_same_bursts_popularity_is_trusted() -> None:
    """A pause ends for all of them at once: the time since its last request says nothing of one."""
    demand, draws, now_s = Demand(), random.Random(0), 0.0
    for number in range(2000):
        now_s += 60.0 if number % 20 == 0 else 0.2
        demand.observe(draws.choices("abcd", weights=(8, 4, 2, 1))[0], now_s=now_s)
    assert demand.trust < 0.3
    shares = {model: demand.share(model, now_s=now_s) for model in "abcd"}
    assert shares["a"] == pytest.approx(8 / 15, abs=0.1)
    assert sorted(shares, key=shares.__getitem__) == ["d", "c", "b", "a"]


def test_where_models_keep_their_hours_the_times_are_trusted() -> None:
    """Three are asked for every 300 s, a hundred apart: to popularity they are all the same."""
    demand = Demand()
    for round_s in range(0, 300 * 100, 300):
        for offset_s, model in ((0, "a"), (100, "b"), (200, "c")):
            demand.observe(model, now_s=float(round_s + offset_s))
    assert demand.trust > 0.8
    last_s = 300 * 99 + 200
    assert demand.share("a", now_s=last_s + 95.0) > 0.8
    assert demand.share("c", now_s=last_s + 95.0) < 0.1


def test_trust_changes_sides_when_the_requests_do() -> None:
    demand, draws, now_s = Demand(), random.Random(0), 0.0
    for number in range(1000):
        now_s += 60.0 if number % 20 == 0 else 0.2
        demand.observe(draws.choices("abc", weights=(4, 2, 1))[0], now_s=now_s)
    assert 1e-3 < demand.trust < 0.3  # little, but never so little that it is lost
    for _ in range(20):
        for model in "abc":
            for _ in range(20):
                now_s += 0.2
                demand.observe(model, now_s=now_s)
            now_s += 60
    assert demand.trust > 0.7


def test_popularity_moves_to_what_is_asked_for_now() -> None:
    popularity = Popularity(remembered=50)
    for model in ["old"] * 1000 + ["new"] * 200:
        popularity.observe(model)
    assert popularity.shares(["old", "new"])["new"] > 0.9


def test_popularity_counts_on_after_very_many_requests() -> None:
    """Counts grow by a factor with every request: they must not overflow."""
    popularity = Popularity(remembered=2)
    for _ in range(2000):
        popularity.observe("a")
        popularity.observe("b")
    shares = popularity.shares(["a", "b", "c"])
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["b"] > shares["a"] > shares["c"]


def test_of_two_that_are_both_likely_the_sooner_has_the_larger_share() -> None:
    """Means of 1 and 6 s: both come within 10 s, but six times of seven the one comes first."""
    timing, draws = Timing(horizon_s=10), random.Random(0)
    for model, mean_s in (("often", 1.0), ("seldom", 6.0)):
        now_s = 0.0
        while now_s < 3000:
            timing.observe(model, now_s=now_s)
            now_s += draws.expovariate(1 / mean_s)
        timing.observe(model, now_s=3000.0)
    shares = timing.shares(["often", "seldom"], now_s=3000.5)
    assert timing.probability("seldom", now_s=3000.5) > 0.7
    assert shares["often"] > 2 * shares["seldom"]


def test_nothing_known_is_shared_evenly() -> None:
    demand = Demand()
    for model in "abcd":
        demand.share(model, now_s=0.0)
    assert [demand.share(model, now_s=0.0) for model in "abcd"] == pytest.approx([0.25] * 4)
