"""Fair shares where work comes and goes: nobody is behind its part by more than a step of each."""

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.core.qos import Priority, QoS
from deepseek.scheduling.sharing.fair_share import FairShare, device_parts
from tests.scheduling.sharing.bursts import (
    BurstyDevice,
    Step,
    Work,
    largest_arrears,
    used_s,
)

MAX_STEP_S = 0.01
HEADROOM = 0.02
"""Part of the others' part that is kept for critical models too."""
RESERVED = QoS(priority=Priority.CRITICAL, reserved_share=0.9)

steps_s = st.lists(st.floats(0.004, 0.08), min_size=1, max_size=5)
# Few times, so that some wake together and others while somebody was alone for long.
bursts = st.lists(
    st.tuples(st.sampled_from((0.0, 0.5, 2.0, 2.2, 5.0)), st.integers(1, 400)),
    min_size=1,
    max_size=4,
) | st.just([(0.0, 10**9)])


@st.composite
def settings_of(draw: st.DrawFn, *, count: int) -> dict[str, QoS]:
    """Any that are admitted: some reservations, and something left for those that have none."""
    names = "abcde"[:count]
    reserving = draw(st.sets(st.sampled_from(names)))
    cuts = [draw(st.floats(0.05, 1.0)) for _ in reserving]
    total = draw(st.floats(0.05, 0.95))
    reserved = {n: total * c / sum(cuts) for n, c in zip(sorted(reserving), cuts, strict=True)}
    return {
        name: QoS(
            priority=draw(st.sampled_from(Priority)),
            reserved_share=reserved.get(name, 0.0),
            weight=draw(st.floats(0.1, 10.0)),
        )
        for name in names
    }


@st.composite
def loads(draw: st.DrawFn) -> tuple[dict[str, QoS], dict[str, Work]]:
    models = draw(settings_of(count=draw(st.integers(2, 5))))
    work = {name: Work(steps_s=draw(steps_s), bursts=draw(bursts)) for name in models}
    return models, work


def promised(models: Mapping[str, QoS]) -> dict[str, float]:
    """Return the parts, without what is kept for critical models beyond their reservations."""
    parts = device_parts(models)
    reserving = {name for name, qos in models.items() if qos.reserved_share > 0}
    first = {name for name in reserving if models[name].priority is Priority.CRITICAL}
    kept = HEADROOM if first else 0.0
    return {name: part * (1 if name in first else 1 - kept) for name, part in parts.items()}


def a_step_of_each(work: Mapping[str, Work]) -> float:
    return sum(of_model.longest_s for of_model in work.values())


@given(loads())
@settings(deadline=None, max_examples=60)
def test_with_work_a_model_is_behind_its_part_by_one_step_of_each_at_most(
    load: tuple[dict[str, QoS], dict[str, Work]],
) -> None:
    models, work = load
    steps = BurstyDevice(FairShare(models, max_step_s=MAX_STEP_S), work).run(until_s=6.0)
    for name, part in promised(models).items():
        assert largest_arrears(steps, name, part=part) <= a_step_of_each(work) + 1e-9


@given(loads())
@settings(deadline=None, max_examples=60)
def test_nobody_with_work_waits_longer_than_its_part_makes_up_for(
    load: tuple[dict[str, QoS], dict[str, Work]],
) -> None:
    models, work = load
    steps = BurstyDevice(FairShare(models, max_step_s=MAX_STEP_S), work).run(until_s=6.0)
    for name, part in promised(models).items():
        assert longest_wait(steps, name) <= a_step_of_each(work) / part + 1e-9


def longest_wait(steps: list[Step], model: str) -> float:
    waited_s = longest_s = 0.0
    for step in steps:
        is_waiting = model in step.ready and step.model != model
        waited_s = waited_s + step.seconds if is_waiting else 0.0
        longest_s = max(longest_s, waited_s)
    return longest_s


@given(loads(), st.data())
@settings(deadline=None, max_examples=60)
def test_new_settings_hold_from_the_step_after_them(
    load: tuple[dict[str, QoS], dict[str, Work]], data: st.DataObject
) -> None:
    models, work = load
    device = BurstyDevice(FairShare(models, max_step_s=MAX_STEP_S), work)
    num_before = len(device.run(until_s=data.draw(st.floats(0.1, 4.0))))
    changed = data.draw(settings_of(count=len(models)))
    device.policy.reconfigure(changed)
    steps = device.run(until_s=device.now_s + 4.0)[num_before:]
    for name, part in promised(changed).items():
        # What was begun under the old settings is one more step of each.
        assert largest_arrears(steps, name, part=part) <= 2 * a_step_of_each(work) + 1e-9


def test_others_are_owed_nothing_for_the_time_that_a_critical_model_had_alone() -> None:
    """They wake while it has no work: by the time it has, that is long forgotten."""
    work = {
        "chat": Work(steps_s=(0.02,), bursts=[(0.0, 5000), (105.0, 10**9)]),
        "embed": Work(steps_s=(0.01,), bursts=[(104.0, 10**9)]),
    }
    models = {"chat": RESERVED, "embed": QoS()}
    steps = BurstyDevice(FairShare(models, max_step_s=MAX_STEP_S), work).run(until_s=115.0)
    assert used_s([step for step in steps if step.started_s < 104.0]) == pytest.approx(
        {"chat": 100.0}
    )
    used = used_s([step for step in steps if step.started_s >= 105.0])
    assert used["chat"] == pytest.approx(9.0, abs=0.05)


def test_a_third_model_wakes_into_its_part_after_minutes_beside_a_critical_one() -> None:
    """Levels keep virtual times apart: rounding in the critical one's favour never adds up."""
    late_s = 600.0
    work = {
        "chat": Work(steps_s=(0.04,)),
        "embed": Work(steps_s=(0.01,)),
        "late": Work(steps_s=(0.01,), bursts=[(late_s, 10**9)]),
    }
    models = {name: RESERVED if name == "chat" else QoS() for name in work}
    steps = BurstyDevice(FairShare(models, max_step_s=MAX_STEP_S), work).run(until_s=late_s + 60.0)
    last_minute = used_s([step for step in steps if step.started_s >= late_s])
    assert last_minute["embed"] == pytest.approx(3.0, abs=0.1)
    assert last_minute["late"] == pytest.approx(3.0, abs=0.1)


def test_a_larger_part_does_not_wait_for_what_the_small_one_has_used() -> None:
    """At a part of 1/1001 a step of 10 ms is 10 s of virtual time: that is not waited out."""
    models = {"small": QoS(weight=0.01), "large": QoS(weight=10.0)}
    policy = FairShare(models, max_step_s=MAX_STEP_S)
    device = BurstyDevice(policy, {name: Work(steps_s=(0.01,)) for name in models})
    device.run(until_s=0.015)
    assert used_s(device.steps).keys() == {"small", "large"}
    policy.reconfigure(dict.fromkeys(models, QoS()))
    num_before = len(device.steps)
    used = used_s(device.run(until_s=device.now_s + 1.0)[num_before:])
    assert used["small"] == pytest.approx(0.5, abs=0.03)
