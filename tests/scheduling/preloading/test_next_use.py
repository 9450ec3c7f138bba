import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.scheduling.preloading.next_use import ArrivalHistogram

gaps = st.lists(st.floats(0, 1e7), max_size=50)
seconds = st.floats(0, 1e7)


def histogram(*gaps_s: float, **settings: float) -> ArrivalHistogram:
    result = ArrivalHistogram(**settings)
    for gap_s in gaps_s:
        result.add(gap_s)
    return result


@given(gaps, seconds, seconds, seconds)
def test_a_longer_horizon_is_never_less_likely(
    seen: list[float], elapsed_s: float, shorter_s: float, more_s: float
) -> None:
    found = histogram(*seen)
    shorter = found.probability(elapsed_s=elapsed_s, horizon_s=shorter_s)
    longer = found.probability(elapsed_s=elapsed_s, horizon_s=shorter_s + more_s)
    assert 0 <= shorter <= longer + 1e-12
    assert longer < 1


@given(gaps, seconds, seconds, seconds)
def test_two_horizons_in_a_row_are_one(
    seen: list[float], elapsed_s: float, first_s: float, second_s: float
) -> None:
    found = histogram(*seen)
    not_first = 1 - found.probability(elapsed_s=elapsed_s, horizon_s=first_s)
    not_second = 1 - found.probability(elapsed_s=elapsed_s + first_s, horizon_s=second_s)
    not_both = 1 - found.probability(elapsed_s=elapsed_s, horizon_s=first_s + second_s)
    assert not_first * not_second == pytest.approx(not_both, abs=1e-9)


def test_a_job_every_ten_minutes_is_expected_when_its_time_comes() -> None:
    job = histogram(*[600.0] * 50)
    assert job.probability(elapsed_s=30, horizon_s=60) < 0.01
    assert job.probability(elapsed_s=500, horizon_s=250) > 0.95


def test_a_burst_is_expected_to_go_on_and_a_long_pause_too() -> None:
    bursty = histogram(*([0.2] * 9 + [3000.0]) * 10)
    assert bursty.probability(elapsed_s=0.05, horizon_s=1) > 0.85
    assert bursty.probability(elapsed_s=20, horizon_s=60) < 0.05


def test_before_anything_is_seen_the_likelihood_falls_with_the_time_waited() -> None:
    unseen = ArrivalHistogram()
    waited = [unseen.probability(elapsed_s=10.0**n, horizon_s=60) for n in range(6)]
    assert waited == sorted(waited, reverse=True)
    assert waited[0] > 0.1 > waited[-1]


def test_one_gap_moves_a_new_model_and_hardly_a_known_one() -> None:
    def moved(before: list[float]) -> float:
        settings = {"elapsed_s": 50.0, "horizon_s": 50.0}
        change = histogram(*before, 70.0).probability(**settings) - histogram(*before).probability(
            **settings
        )
        return abs(change)

    assert moved([]) > 0.2
    assert moved([1000.0] * 100) < 0.02


def test_old_gaps_are_forgotten() -> None:
    changed = histogram(*[5.0] * 200, *[5000.0] * 200, remembered=20)
    assert changed.probability(elapsed_s=1, horizon_s=10) < 0.05
    assert changed.num_remembered == pytest.approx(20, rel=0.1)


def test_poisson_arrivals_are_told_the_same_whatever_was_waited() -> None:
    """The exponential distribution has no memory; its quantiles stand in for draws."""
    mean_s, count = 20.0, 2000
    poisson = histogram(
        *(-mean_s * math.log(1 - (7919 * n % count + 0.5) / count) for n in range(count)),
        remembered=1e6,
    )
    expected = 1 - math.exp(-10 / mean_s)
    for elapsed_s in (0.5, 5, 20, 60):
        found = poisson.probability(elapsed_s=elapsed_s, horizon_s=10)
        assert found == pytest.approx(expected, abs=0.06)


@given(gaps)
def test_after_more_than_a_week_nothing_is_expected(seen: list[float]) -> None:
    assert histogram(*seen).probability(elapsed_s=1e7, horizon_s=3600) == 0
