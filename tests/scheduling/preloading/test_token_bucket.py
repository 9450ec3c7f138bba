import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.scheduling.preloading.token_bucket import TokenBucket


@given(
    rate=st.floats(1, 1e6),
    burst=st.integers(1, 10**6),
    wanted=st.lists(st.tuples(st.floats(0, 10), st.integers(0, 2 * 10**6)), max_size=60),
)
def test_no_more_is_given_than_the_rate_and_a_burst(
    rate: float, burst: int, wanted: list[tuple[float, int]]
) -> None:
    bucket = TokenBucket(bytes_per_s=rate, burst_bytes=burst)
    now_s, given_bytes, largest = 0.0, 0, 0
    for pause_s, num_bytes in wanted:
        now_s += pause_s
        if bucket.take(num_bytes, now_s=now_s):
            given_bytes += num_bytes
            largest = max(largest, num_bytes)
    assert given_bytes <= rate * now_s + burst + max(0, largest - burst) + 1e-3


@given(rate=st.floats(1, 1e6), burst=st.integers(1, 10**6), num_bytes=st.integers(1, 10**7))
def test_who_waits_as_long_as_told_is_given_it(rate: float, burst: int, num_bytes: int) -> None:
    bucket = TokenBucket(bytes_per_s=rate, burst_bytes=burst)
    now_s = 0.0
    for _ in range(3):
        wait_s = bucket.wait_s(num_bytes, now_s=now_s)
        if wait_s > 1e-6:
            assert not bucket.take(num_bytes, now_s=now_s + wait_s * 0.99)
        now_s += wait_s
        assert bucket.take(num_bytes, now_s=now_s)


def test_a_long_copy_runs_at_the_rate() -> None:
    bucket = TokenBucket(bytes_per_s=100.0, burst_bytes=10)
    now_s = 0.0
    for _ in range(1000):
        now_s += bucket.wait_s(25, now_s=now_s)
        assert bucket.take(25, now_s=now_s)
    assert now_s == pytest.approx(1000 * 25 / 100, rel=0.01)


def test_a_pause_earns_one_burst_and_no_more() -> None:
    bucket = TokenBucket(bytes_per_s=100.0, burst_bytes=50)
    assert bucket.take(50, now_s=0.0)
    assert bucket.take(50, now_s=1000.0)
    assert not bucket.take(1, now_s=1000.0)


def test_a_clock_that_goes_back_earns_nothing() -> None:
    bucket = TokenBucket(bytes_per_s=100.0, burst_bytes=50)
    assert bucket.take(50, now_s=10.0)
    assert not bucket.take(50, now_s=5.0)
    assert not bucket.take(50, now_s=10.0)


def test_no_rate_gives_the_first_burst_only_and_an_infinite_one_everything() -> None:
    none = TokenBucket(bytes_per_s=0.0, burst_bytes=8)
    assert none.take(8, now_s=0.0)
    assert none.wait_s(1, now_s=1e9) == math.inf
    all_of_it = TokenBucket(bytes_per_s=math.inf, burst_bytes=8)
    assert all(all_of_it.take(10**12, now_s=0.0) for _ in range(3))


def test_a_new_rate_holds_from_then_on() -> None:
    bucket = TokenBucket(bytes_per_s=1.0, burst_bytes=100)
    assert bucket.take(100, now_s=0.0)
    bucket.reconfigure(bytes_per_s=50.0, now_s=10.0)
    assert bucket.wait_s(60, now_s=10.0) == pytest.approx(1.0)


@pytest.mark.parametrize(("rate", "burst"), [(-1.0, 10), (math.nan, 10), (1.0, 0)])
def test_settings_that_mean_nothing_are_refused(rate: float, burst: int) -> None:
    with pytest.raises(ValueError, match="a bucket of"):
        TokenBucket(bytes_per_s=rate, burst_bytes=burst)
