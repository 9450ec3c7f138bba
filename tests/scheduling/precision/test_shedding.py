"""When load is shed: in the words of an operator, and for any load."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.core.decisions import Decision
from deepseek.core.load import ModelLoad
from deepseek.core.residency import Residency
from deepseek.scheduling.precision.shedding import LoadShedding, SheddingLimits

LIMITS = SheddingLimits(wait_s=2.0, calm_s=10.0)
INTERVAL_S = 0.5


def load(
    oldest_wait_s: float | None = None, *, slack_s: float | None = None, num_waiting: int = 0
) -> ModelLoad:
    return ModelLoad(
        model="m",
        num_waiting=num_waiting,
        num_running=1,
        kv_tokens_used=0,
        kv_tokens_cached=0,
        kv_tokens_capacity=1,
        oldest_wait_s=oldest_wait_s,
        deadline_slack_s=slack_s,
    )


def told(shedding: LoadShedding, loads: list[ModelLoad], *, start: int = 0) -> list[Decision]:
    """Give reports half a second apart."""
    return [
        decision
        for number, report in enumerate(loads, start=start)
        for decision in shedding.adjust(report, now_s=number * INTERVAL_S)
    ]


def test_two_reports_of_a_long_wait_begin_it_and_a_calm_while_ends_it() -> None:
    shedding = LoadShedding("m", LIMITS)
    assert told(shedding, [load(2.5)]) == []
    assert not shedding.is_active
    (began,) = told(shedding, [load(3.0, num_waiting=7)], start=1)
    assert shedding.is_active
    assert began.action == "shed-precision"
    assert began.reason == (
        "the oldest request has waited 3 s for its first step: requests that name no precision get "
        "int4"
    )
    assert began.signals == {"oldest_wait_s": 3.0, "num_waiting": 7, "num_running": 1}
    assert told(shedding, [load()] * 20, start=2) == []
    (ended,) = told(shedding, [load(0.5)], start=22)
    assert ended.action == "restore-precision"
    assert not shedding.is_active


def test_one_long_wait_alone_changes_nothing() -> None:
    shedding = LoadShedding("m", LIMITS)
    assert told(shedding, [load(9.0), load(0.1)] * 20) == []


def test_missed_deadlines_begin_it_too() -> None:
    shedding = LoadShedding("m", LIMITS)
    (began,) = told(shedding, [load(slack_s=-0.2)] * 5)
    assert began.reason.startswith("a deadline has been missed by 200 ms")


def test_a_load_between_the_bounds_keeps_it_as_it_is() -> None:
    shedding = LoadShedding("m", LIMITS)
    assert told(shedding, [load(1.5)] * 100) == []
    told(shedding, [load(2.0)] * 2, start=100)
    assert told(shedding, [load(1.5)] * 200, start=102) == []
    assert shedding.is_active


def test_signals_that_are_unknown_begin_nothing() -> None:
    shedding = LoadShedding("m", LIMITS)
    assert told(shedding, [load(num_waiting=500)] * 50) == []


def test_a_wait_for_the_model_itself_begins_nothing() -> None:
    shedding = LoadShedding("m", LIMITS)
    absent = replace(load(9.0), residency=Residency.LOADING)
    assert told(shedding, [absent] * 10) == []
    assert told(shedding, [load(9.0)] * 2, start=10)


@pytest.mark.parametrize(("wait_s", "calm_s"), [(0.0, 1.0), (-1.0, 1.0), (1.0, -1.0)])
def test_limits_without_a_meaning_are_refused(wait_s: float, calm_s: float) -> None:
    with pytest.raises(ValueError, match="wait_s"):
        SheddingLimits(wait_s=wait_s, calm_s=calm_s)


waits = st.none() | st.floats(0.0, 10.0)
slacks = st.none() | st.floats(-5.0, 5.0)
reports = st.lists(st.builds(load, waits, slack_s=slacks), max_size=120)


@given(reports)
def test_it_begins_under_pressure_only_and_changes_at_a_bounded_rate(
    loads: list[ModelLoad],
) -> None:
    shedding = LoadShedding("m", LIMITS)
    changes = told(shedding, loads)
    actions = [change.action for change in changes]
    assert actions == ["shed-precision", "restore-precision"] * (len(actions) // 2) + (
        ["shed-precision"] if len(actions) % 2 else []
    )
    for change in changes:
        report = loads[round(change.at_s / INTERVAL_S)]
        presses = (report.oldest_wait_s or 0) >= 2 or (report.deadline_slack_s or 0) < 0
        assert presses == (change.action == "shed-precision")
    begun = [change.at_s for change in changes if change.action == "shed-precision"]
    assert all(later - earlier >= LIMITS.calm_s for earlier, later in pairwise(begun))


@given(reports)
def test_it_ends_whatever_came_before_once_nobody_waits(loads: list[ModelLoad]) -> None:
    shedding = LoadShedding("m", LIMITS)
    told(shedding, [*loads, *[load()] * 21])
    assert not shedding.is_active


@given(reports)
def test_the_same_reports_lead_to_the_same_decisions(loads: list[ModelLoad]) -> None:
    assert told(LoadShedding("m", LIMITS), loads) == told(LoadShedding("m", LIMITS), loads)
