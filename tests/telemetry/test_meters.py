"""The meters, with explicit times: no test waits."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.core.load import ModelLoad
from deepseek.telemetry.meters import DeviceBusy, FadingRate, ModelMeter

START_S = 1000.0
seconds = st.floats(0.0, 20.0)
steps = st.lists(
    st.tuples(st.floats(1e-4, 1.0), st.integers(0, 8), st.booleans()), min_size=1, max_size=60
)


def idle_load() -> ModelLoad:
    return ModelLoad(
        model="chat",
        num_waiting=0,
        num_running=0,
        kv_tokens_used=0,
        kv_tokens_cached=0,
        kv_tokens_capacity=0,
    )


def test_a_new_meter_knows_only_that_nothing_has_arrived() -> None:
    load = replace(idle_load(), **ModelMeter(START_S).read(START_S))
    assert load == replace(idle_load(), arrival_rate=0.0)


@pytest.mark.parametrize("per_second", [0.5, 4.0, 250.0])
def test_a_steady_stream_reads_at_its_rate(per_second: float) -> None:
    rate = FadingRate(START_S, half_life_s=5.0)
    num_events = int(60 * per_second)
    for k in range(num_events):
        rate.add(START_S + (k + 0.5) / per_second)
    assert rate.read(START_S + 60) == pytest.approx(per_second, rel=0.1)


def test_the_rate_is_right_before_a_half_life_has_passed() -> None:
    rate = FadingRate(START_S, half_life_s=60.0)
    for k in range(20):
        rate.add(START_S + k / 10)
    assert rate.read(START_S + 2) == pytest.approx(10.0, rel=0.05)


def test_one_arrival_at_the_start_is_no_flood() -> None:
    rate = FadingRate(START_S, half_life_s=5.0)
    rate.add(START_S)
    assert rate.read(START_S) <= 1.1


def test_a_rate_halves_with_every_half_life_without_events() -> None:
    rate = FadingRate(START_S - 1e6, half_life_s=5.0)
    for k in range(50):
        rate.add(START_S - k / 10)
    assert rate.read(START_S + 5) == pytest.approx(rate.read(START_S) / 2, rel=1e-6)
    assert rate.read(START_S + 1e9) == 0.0


@given(gaps=st.lists(seconds, max_size=60), later=st.lists(seconds, min_size=1, max_size=5))
def test_a_rate_is_never_negative_and_only_falls_while_nothing_happens(
    gaps: list[float], later: list[float]
) -> None:
    rate = FadingRate(START_S, half_life_s=3.0)
    now = START_S
    for gap in gaps:
        now += gap
        rate.add(now)
    readings = [rate.read(now)]
    for gap in later:
        now += gap
        readings.append(rate.read(now))
    assert readings == sorted(readings, reverse=True)
    assert readings[-1] >= 0
    assert readings[0] <= len(gaps) * 1.2, "at most as if all had come in one second"


@given(gaps=st.lists(seconds, max_size=40))
def test_a_rate_weighs_every_event_by_its_age(gaps: list[float]) -> None:
    half_life_s = 3.0
    rate = FadingRate(START_S, half_life_s=half_life_s)
    times = [START_S + sum(gaps[: k + 1]) for k in range(len(gaps))]
    for at in times:
        rate.add(at)
    now = START_S + sum(gaps) + 2.0
    weight = sum(0.5 ** ((now - at) / half_life_s) for at in times)
    all_weight = half_life_s / math.log(2) * (1 - 0.5 ** ((now - START_S) / half_life_s))
    assert rate.read(now) == pytest.approx(weight / all_weight)


def test_an_arrival_that_is_told_late_still_counts() -> None:
    rate = FadingRate(START_S, half_life_s=5.0)
    rate.add(START_S + 3)
    rate.add(START_S + 1)
    assert rate.read(START_S + 3) > FadingRate(START_S, half_life_s=5.0).read(START_S + 3)
    both = FadingRate(START_S, half_life_s=5.0)
    both.add(START_S + 3)
    both.add(START_S + 3)
    assert rate.read(START_S + 3) == both.read(START_S + 3)


@given(steps=steps)
def test_averages_over_steps_lie_between_their_least_and_their_most(
    steps: list[tuple[float, int, bool]],
) -> None:
    meter = ModelMeter(START_S)
    for step_s, num_sequences, is_failed in steps:
        meter.stepped(step_s, num_sequences=num_sequences, cap=8, is_failed=is_failed)
    found = meter.read(START_S)
    for name, told in (
        ("step_time_s", [s for s, _, _ in steps]),
        ("batch_occupancy", [n / 8 for _, n, _ in steps]),
        ("error_rate", [float(failed) for *_, failed in steps]),
    ):
        value = found[name]  # type: ignore[literal-required]
        assert min(told) - 1e-9 <= value <= max(told) + 1e-9


def test_step_averages_follow_a_slow_down_within_seconds_of_device_time() -> None:
    meter = ModelMeter(START_S)
    for _ in range(1000):
        meter.stepped(0.010, num_sequences=2, cap=8)
    for _ in range(625):  # 10 s of the device at 16 ms
        meter.stepped(0.016, num_sequences=8, cap=8)
    found = meter.read(START_S)
    assert found["step_time_s"] == pytest.approx(0.016, rel=0.05)
    assert found["batch_occupancy"] == pytest.approx(1.0, rel=0.05)


def test_failed_steps_fade_once_steps_succeed_again() -> None:
    meter = ModelMeter(START_S)
    meter.stepped(0.01, num_sequences=1, cap=8, is_failed=True)
    assert meter.read(START_S)["error_rate"] == 1.0
    for _ in range(2000):
        meter.stepped(0.01, num_sequences=1, cap=8)
    assert meter.read(START_S)["error_rate"] == pytest.approx(0, abs=1e-4)


def test_what_the_device_can_do_is_still_known_after_an_idle_week() -> None:
    meter = ModelMeter(START_S)
    for _ in range(300):
        meter.stepped(0.05, num_sequences=4, cap=8)
        meter.finished()
    before, after = meter.read(START_S + 15), meter.read(START_S + 7 * 86400)
    assert after["service_rate"] == before["service_rate"]
    assert after["step_time_s"] == before["step_time_s"]
    assert after["arrival_rate"] == 0.0


@given(steps=st.lists(st.tuples(st.floats(1e-3, 2.0), st.integers(0, 3)), min_size=1, max_size=60))
def test_the_service_rate_is_what_finished_by_the_device_time_it_took(
    steps: list[tuple[float, int]],
) -> None:
    meter = ModelMeter(START_S, service_half_life_s=1e12)  # nothing fades: plain sums
    for step_s, num_finished in steps:
        for _ in range(num_finished):
            meter.finished()
        meter.stepped(step_s, num_sequences=4, cap=8)
    finished, busy_s = sum(n for _, n in steps), sum(s for s, _ in steps)
    expected = pytest.approx(finished / busy_s) if finished else None
    assert meter.read(START_S)["service_rate"] == expected


def test_a_model_that_has_finished_nothing_yet_is_not_called_slow() -> None:
    meter = ModelMeter(START_S)
    meter.stepped(0.1, num_sequences=1, cap=8)
    assert meter.read(START_S)["service_rate"] is None
    meter.finished()
    meter.stepped(0.1, num_sequences=1, cap=8)
    assert meter.read(START_S)["service_rate"] == pytest.approx(1 / 0.2, rel=0.01)


@given(waits=st.lists(st.floats(0, 100), min_size=1, max_size=300))
def test_one_wait_in_a_hundred_is_longer_than_the_99th_percentile(waits: list[float]) -> None:
    meter = ModelMeter(START_S)
    for wait_s in waits:
        meter.began(START_S, wait_s=wait_s)
    p99 = meter.read(START_S)["wait_p99_s"]
    assert p99 in waits
    num_longer = sum(wait_s > p99 for wait_s in waits)
    num_as_long_or_longer = sum(wait_s >= p99 for wait_s in waits)
    assert num_longer <= 0.01 * len(waits) < num_as_long_or_longer


def test_old_waits_are_forgotten() -> None:
    meter = ModelMeter(START_S, wait_window_s=30.0)
    meter.began(START_S, wait_s=9.0)
    meter.began(START_S + 20, wait_s=1.0)
    assert meter.read(START_S + 30)["wait_p99_s"] == 9.0
    assert meter.read(START_S + 31)["wait_p99_s"] == 1.0
    assert meter.read(START_S + 51)["wait_p99_s"] is None


def test_only_the_latest_thousand_waits_are_kept() -> None:
    meter = ModelMeter(START_S)
    for k in range(5000):
        meter.began(START_S + k / 1000, wait_s=5000.0 - k)
    assert meter.read(START_S + 5)["wait_p99_s"] <= 1024  # type: ignore[operator]


def test_reading_changes_nothing() -> None:
    meter = ModelMeter(START_S)
    meter.arrived(START_S)
    meter.began(START_S, wait_s=0.1)
    meter.finished()
    meter.stepped(0.1, num_sequences=1, cap=8)
    assert meter.read(START_S + 1) == meter.read(START_S + 1)


@given(
    intervals=st.lists(
        st.lists(st.floats(0.001, 0.2), max_size=10).flatmap(
            lambda busy: st.tuples(st.just(busy), st.floats(0.001, 3.0))
        ),
        min_size=1,
        max_size=10,
    )
)
def test_the_busy_part_of_every_interval_is_its_own(
    intervals: list[tuple[list[float], float]],
) -> None:
    busy, now = DeviceBusy(START_S), START_S
    assert busy.read(now) is None
    for step_times, idle_s in intervals:
        for step_s in step_times:
            busy.stepped(step_s)
        now += sum(step_times) + idle_s
        expected = sum(step_times) / (sum(step_times) + idle_s)
        assert busy.read(now) == pytest.approx(expected, abs=1e-6)
        assert busy.read(now) == pytest.approx(expected, abs=1e-6), "read twice at one time"


def test_a_device_without_steps_is_not_busy_and_never_more_than_wholly() -> None:
    busy = DeviceBusy(START_S)
    busy.stepped(1.0000001)
    assert busy.read(START_S + 1) == 1.0
    assert busy.read(START_S + 2) == 0.0
