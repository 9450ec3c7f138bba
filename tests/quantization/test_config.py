"""The config alone: which precision a policy gives a request."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.core.precision import Precision
from deepseek.quantization import MixedPrecisionConfig, SwitchPolicy

PRECISIONS = st.sampled_from(list(Precision))


@pytest.mark.parametrize(
    ("request_class", "num_input_tokens", "is_under_pressure", "chosen"),
    [
        (None, 10, False, Precision.FP16),
        ("interactive", 10, False, Precision.FP16),
        ("batch", 10, False, Precision.INT8),
        ("batch", 10, True, Precision.INT4),
        ("interactive", 10, True, Precision.INT4),
        ("interactive", 2048, False, Precision.INT4),
        ("interactive", 2047, False, Precision.FP16),
    ],
)
def test_a_policy_chooses_by_class_length_and_pressure(
    request_class: str | None, num_input_tokens: int, is_under_pressure: bool, chosen: Precision
) -> None:
    policy = SwitchPolicy(by_class={"batch": "int8"}, long_input_tokens=2048)
    found = policy.choose(
        request_class=request_class,
        num_input_tokens=num_input_tokens,
        is_under_pressure=is_under_pressure,
    )
    assert found is chosen


@given(floor=PRECISIONS, wanted=PRECISIONS, tokens=st.integers(0, 9), pressed=st.booleans())
def test_no_request_gets_less_than_the_floor(
    floor: Precision, wanted: Precision, tokens: int, pressed: bool
) -> None:
    policy = SwitchPolicy(floor=floor, by_class={"a": wanted}, long_input_tokens=5)
    found = policy.choose(request_class="a", num_input_tokens=tokens, is_under_pressure=pressed)
    order = list(Precision)
    assert order.index(found) >= order.index(floor)


def test_load_is_not_shed_where_the_policy_says_so() -> None:
    policy = SwitchPolicy(shed_load=False)
    assert policy.choose(is_under_pressure=True) is Precision.FP16


def test_true_is_a_policy_with_its_defaults_and_false_is_none() -> None:
    assert MixedPrecisionConfig(dynamic_switch=True).dynamic_switch == SwitchPolicy()
    assert MixedPrecisionConfig(dynamic_switch=False).dynamic_switch is None
    config = MixedPrecisionConfig(dynamic_switch={"floor": "int8"})
    assert MixedPrecisionConfig.model_validate(config.model_dump(mode="json")) == config
