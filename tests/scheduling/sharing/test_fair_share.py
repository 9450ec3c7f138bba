"""Shares of device time: bounds under generated loads, no starvation, no credit for idling."""

import dataclasses
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.core.errors import ConfigurationError
from deepseek.core.qos import Priority, QoS
from deepseek.scheduling.sharing.fair_share import FairShare, device_parts
from tests.scheduling.sharing.device import Device, constant

CRITICAL = QoS(priority=Priority.CRITICAL, reserved_share=0.9)
MAX_STEP_S = 0.01
HEADROOM = 0.02
"""Part of the others' part that is kept for critical models too."""


@st.composite
def loads(draw: st.DrawFn) -> dict[str, tuple[QoS, float]]:
    """Return models with settings that fit one device, and their longest steps."""
    count = draw(st.integers(1, 6))
    left = 0.95
    models: dict[str, tuple[QoS, float]] = {}
    for name in "abcdef"[:count]:
        reserved = draw(st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.6, 0.9]))
        reserved = reserved if reserved <= left else 0.0
        left -= reserved
        priority = draw(st.sampled_from(list(Priority)))
        weight = draw(st.floats(0.1, 10))
        qos = QoS(priority=priority, reserved_share=reserved, weight=weight)
        models[name] = (qos, draw(st.floats(0.001, 0.1)))
    return models


def device_of(
    models: dict[str, tuple[QoS, float]], *, seed: int = 0, max_step_s: float = math.inf
) -> Device:
    """Return a device whose steps take from a tenth of a model's longest step to all of it."""
    draw = random.Random(seed)
    policy = FairShare({n: qos for n, (qos, _) in models.items()}, max_step_s=max_step_s)
    return Device(policy, lambda model: models[model][1] * draw.uniform(0.1, 1.0))


def assert_served_its_part(
    device: Device, models: dict[str, tuple[QoS, float]], model: str, *, start_s: float
) -> None:
    part = device_parts({name: qos for name, (qos, _) in models.items()})[model]
    served_s = device.served(model, start_s=start_s, end_s=device.now_s)
    lag_s = sum(longest_s for _, longest_s in models.values())
    kept = HEADROOM if model not in _critical(models) and _critical(models) else 0.0
    assert served_s >= part * (1 - kept) * (device.now_s - start_s) - lag_s - 1e-9


def _critical(models: dict[str, tuple[QoS, float]]) -> list[str]:
    return [
        name
        for name, (qos, _) in models.items()
        if qos.priority is Priority.CRITICAL and qos.reserved_share > 0
    ]


@given(loads(), st.integers(0, 1000))
@settings(deadline=None, max_examples=100)
def test_a_backlogged_model_has_its_part_less_one_step_of_each(
    models: dict[str, tuple[QoS, float]], seed: int
) -> None:
    device = device_of(models, seed=seed)
    for _ in range(4):
        device.run(list(models), for_s=0.5)
        for model in models:
            assert_served_its_part(device, models, model, start_s=0.0)


@given(loads(), st.data())
@settings(deadline=None, max_examples=100)
def test_the_bound_holds_from_when_work_comes_whatever_the_others_do(
    models: dict[str, tuple[QoS, float]], data: st.DataObject
) -> None:
    device = device_of(models)
    names = list(models)
    model = data.draw(st.sampled_from(names))
    subsets = st.sets(st.sampled_from(names), min_size=1)
    for _ in range(3):
        device.run(sorted(data.draw(subsets)), for_s=0.3)
    rest = [name for name in names if name != model]
    device.run(rest or names, for_s=0.3)
    start_s = device.now_s
    for _ in range(4):
        device.run(sorted({model} | data.draw(subsets)), for_s=0.4)
        assert_served_its_part(device, models, model, start_s=start_s)


@given(loads())
@settings(deadline=None, max_examples=50)
def test_nobody_starves(models: dict[str, tuple[QoS, float]]) -> None:
    device = device_of(models)
    parts = device_parts({name: qos for name, (qos, _) in models.items()})
    steps_s = sum(longest_s for _, longest_s in models.values())
    # Within this time the bound promises more than nothing, to the least of them too.
    device.run(list(models), for_s=min(60.0, 1.1 * steps_s / min(parts.values())))
    for model, part in parts.items():
        if part * device.now_s > steps_s:
            assert device.served(model, start_s=0.0, end_s=device.now_s) > 0


def test_idling_earns_nothing() -> None:
    models = {"busy": (QoS(), 0.01), "idle": (QoS(), 0.01)}
    device = device_of(models)
    device.run(["busy"], for_s=10.0)
    start_s = device.now_s
    device.run(["busy", "idle"], for_s=1.0)
    served_s = device.served("idle", start_s=start_s, end_s=device.now_s)
    assert served_s == pytest.approx(0.5, abs=0.02)


def test_others_that_were_idle_are_paid_one_step_beside_a_critical_model_not_more() -> None:
    models = {"critical": (CRITICAL, 0.03), "other": (QoS(), 0.01)}
    device = Device(
        FairShare({n: q for n, (q, _) in models.items()}, max_step_s=MAX_STEP_S),
        constant({"critical": 0.03, "other": 0.01}),
    )
    device.run(["critical"], for_s=10.0)
    start_s = device.now_s
    device.run(["critical", "other"], for_s=0.5)
    assert device.served("other", start_s=start_s, end_s=start_s + 0.01) == pytest.approx(0.01)
    served_s = device.served("other", start_s=start_s, end_s=start_s + 0.5)
    assert served_s <= 0.1 * 0.5 + 0.01 + 1e-9


@given(
    st.floats(0.015, 0.1),
    st.lists(st.floats(0.001, MAX_STEP_S), min_size=1, max_size=4),
    st.integers(0, 1000),
)
@settings(deadline=None, max_examples=40)
def test_every_second_holds_a_critical_models_share(
    longest_s: float, others_s: list[float], seed: int
) -> None:
    draw = random.Random(seed)
    steps_s = {f"other-{number}": step_s for number, step_s in enumerate(others_s)}
    policy = FairShare(
        {"critical": CRITICAL, **dict.fromkeys(steps_s, QoS())}, max_step_s=MAX_STEP_S
    )

    def step_s(model: str) -> float:
        return steps_s[model] if model in steps_s else draw.uniform(0.015, longest_s)

    device = Device(policy, step_s)
    device.run(list(steps_s), for_s=0.5)
    start_s = device.now_s
    device.run(["critical", *steps_s], for_s=6.0)
    device.steps = [(at - start_s, name, s) for at, name, s in device.steps if at >= start_s]
    device.now_s -= start_s
    assert device.worst_window("critical", window_s=1.0) >= 0.88
    left_s = device.now_s - device.served("critical", start_s=0.0, end_s=device.now_s)
    assert left_s >= 0.1 * (1 - HEADROOM) * device.now_s - longest_s - MAX_STEP_S


def test_two_critical_models_leave_the_others_what_is_left() -> None:
    qos = QoS(priority=Priority.CRITICAL, reserved_share=0.45)
    models = {"a": (qos, 0.04), "b": (qos, 0.04), "other": (QoS(), 0.01)}
    device = Device(
        FairShare({n: q for n, (q, _) in models.items()}, max_step_s=MAX_STEP_S),
        constant({name: longest_s for name, (_, longest_s) in models.items()}),
    )
    device.run(list(models), for_s=20.0)
    shares = {m: device.served(m, start_s=0.0, end_s=device.now_s) / device.now_s for m in models}
    assert shares == pytest.approx({"a": 0.45, "b": 0.45, "other": 0.1}, abs=0.01)


def test_a_critical_model_that_wakes_does_not_wait_for_one_that_others_slowed() -> None:
    qos = QoS(priority=Priority.CRITICAL, reserved_share=0.45)
    models = {"a": (qos, 0.02), "b": (qos, 0.02), "other": (QoS(), 0.01)}
    device = device_of(models, max_step_s=MAX_STEP_S)
    device.run(["a", "other"], for_s=20.0)
    start_s = device.now_s
    device.run(["a", "b", "other"], for_s=1.0)
    assert_served_its_part(device, models, "b", start_s=start_s)


@given(loads(), loads())
@settings(deadline=None, max_examples=50)
def test_the_bound_holds_after_new_settings(
    before: dict[str, tuple[QoS, float]], after: dict[str, tuple[QoS, float]]
) -> None:
    device = device_of(before)
    device.run(list(before), for_s=1.0)
    device.policy.reconfigure({name: qos for name, (qos, _) in after.items()})
    device.step_s = lambda model: after[model][1]
    start_s = device.now_s
    device.run(list(after), for_s=2.0)
    # Old virtual times are kept, so what a model was ahead before is paid after the change too.
    lag_s = sum(longest_s for _, longest_s in before.values())
    parts = device_parts({name: qos for name, (qos, _) in after.items()})
    for model, part in parts.items():
        served_s = device.served(model, start_s=start_s, end_s=device.now_s)
        own_lag_s = lag_s + sum(longest_s for _, longest_s in after.values())
        old = before.get(model)
        if old is None or old[0] == after[model][0]:
            least_s = part * (1 - HEADROOM) * (device.now_s - start_s)
            assert served_s >= least_s - own_lag_s - 1e-9


def test_settings_that_are_refused_change_nothing() -> None:
    policy = FairShare({"critical": CRITICAL, "other": QoS()}, max_step_s=MAX_STEP_S)
    with pytest.raises(ConfigurationError):
        policy.reconfigure({"critical": CRITICAL, "other": QoS(reserved_share=0.2)})
    device = Device(policy, constant({"critical": 0.02, "other": 0.01}))
    device.run(["critical", "other"], for_s=5.0)
    assert device.served("critical", start_s=0, end_s=5.0) >= 0.9 * 5.0


def test_steps_are_bounded_beside_a_reservation_only() -> None:
    free = FairShare({"a": QoS(), "b": QoS()}, max_step_s=MAX_STEP_S)
    assert free.max_step_s("a") == math.inf
    reserved = FairShare({"critical": CRITICAL, "other": QoS()}, max_step_s=MAX_STEP_S)
    assert reserved.max_step_s("other") == pytest.approx(3 * MAX_STEP_S)  # nobody has work yet
    reserved.pick(["critical", "other"])
    assert reserved.max_step_s("other") == MAX_STEP_S
    reserved.pick(["other"])
    assert reserved.max_step_s("other") == pytest.approx(3 * MAX_STEP_S)
    patient = dataclasses.replace(CRITICAL, ttft_s=1.0)
    promised = FairShare({"critical": patient, "other": QoS()}, max_step_s=MAX_STEP_S)
    assert promised.max_step_s("other") == pytest.approx(0.1), "a tenth of what is promised"
    promised.pick(["critical", "other"])
    assert promised.max_step_s("other") == MAX_STEP_S
    alone = FairShare({"critical": CRITICAL}, max_step_s=MAX_STEP_S)
    assert alone.max_step_s("critical") == math.inf


def test_a_critical_models_step_leaves_the_others_one_step_at_most() -> None:
    policy = FairShare({"critical": CRITICAL, "other": QoS()}, max_step_s=MAX_STEP_S)
    assert policy.max_step_s("critical") == pytest.approx(0.1)
    half = QoS(priority=Priority.CRITICAL, reserved_share=0.5)
    both = FairShare({"a": half, "b": half}, max_step_s=MAX_STEP_S)
    assert both.max_step_s("a") == pytest.approx(0.02)


def test_a_step_is_paid_back_before_the_next_one() -> None:
    policy = FairShare({"critical": CRITICAL, "other": QoS()}, max_step_s=MAX_STEP_S)
    both = ["critical", "other"]
    assert policy.pick(both) == "critical", "first, where both have just begun to have work"
    policy.charge("critical", 0.001)
    assert policy.pick(both) == "other"
    policy.charge("other", 0.01)
    waited_s = 0.001
    while policy.pick(both) == "critical":
        policy.charge("critical", 0.001)
        waited_s += 0.001
    assert waited_s == pytest.approx(0.01 * 0.902 / 0.098, abs=0.0015)


def test_unreserved_time_is_split_by_weight_and_priority() -> None:
    models = {
        "reserved": QoS(reserved_share=0.5),
        "high": QoS(priority=Priority.HIGH),
        "normal": QoS(weight=2.0),
        "low": QoS(priority=Priority.LOW, weight=8.0),
    }
    parts = device_parts(models)
    assert parts == pytest.approx({"reserved": 0.5, "high": 0.25, "normal": 0.125, "low": 0.125})


@given(loads())
def test_parts_sum_to_one_device_at_most(models: dict[str, tuple[QoS, float]]) -> None:
    parts = device_parts({name: qos for name, (qos, _) in models.items()})
    assert sum(parts.values()) <= 1 + 1e-9
    assert all(part > 0 for part in parts.values())


@pytest.mark.parametrize(
    ("models", "remedy"),
    [
        (
            {"a": QoS(reserved_share=0.7), "b": QoS(reserved_share=0.4)},
            r"a, b together reserve 110% .* lower them to 100% at most, or give a model another",
        ),
        (
            {"a": QoS(reserved_share=1.0), "b": QoS()},
            r"nothing is left for b; leave some of it open, reserve a part for them too",
        ),
    ],
)
def test_a_device_that_is_given_away_twice_is_refused_with_a_remedy(
    models: dict[str, QoS], remedy: str
) -> None:
    with pytest.raises(ConfigurationError, match=remedy) as caught:
        device_parts(models)
    assert caught.value.param == "reserved_share"


def test_parts_that_only_rounding_makes_too_many_are_taken() -> None:
    shares = {name: QoS(reserved_share=s) for name, s in zip("abc", (0.7, 0.2, 0.1), strict=True)}
    assert sum(device_parts(shares).values()) == pytest.approx(1.0)
