"""What a served model gives a request: by its settings, its name, and its load."""

from typing import Any

import pytest

from deepseek.core.errors import UnsupportedParameter
from deepseek.core.load import ModelLoad
from deepseek.core.precision import Precision
from deepseek.scheduling.precision.policy import PrecisionChoice, Reason, RequestKind
from deepseek.serving.precision import ServedPrecision
from deepseek.serving.settings import ModelSettings

SHORT = RequestKind(num_prompt_tokens=10, max_answer_tokens=10)


def served(**settings: Any) -> ServedPrecision:
    return ServedPrecision("m", ModelSettings.model_validate({"source": "s", **settings}))


def settings_of(**precision: Any) -> ModelSettings:
    return ModelSettings.model_validate(
        {"source": "s", "quantization": "nested", "precision": precision}
    )


def nested(**precision: Any) -> ServedPrecision:
    return ServedPrecision("m", settings_of(**precision))


def pressed(wait_s: float) -> ModelLoad:
    return ModelLoad(
        model="m",
        num_waiting=3,
        num_running=1,
        kv_tokens_used=0,
        kv_tokens_cached=0,
        kv_tokens_capacity=1,
        oldest_wait_s=wait_s,
    )


@pytest.mark.parametrize(
    ("settings", "weights"),
    [({}, "the number format of its dtype"), ({"quantization": "int8"}, "int8")],
)
def test_a_model_of_one_precision_says_what_it_has(settings: dict[str, Any], weights: str) -> None:
    model = served(**settings)
    assert model.choose(SHORT, named=None) is None
    with pytest.raises(UnsupportedParameter, match=f"weights in {weights} only") as caught:
        model.choose(SHORT, named=Precision.INT4)
    assert caught.value.param == "precision"


def test_a_nested_model_without_further_settings_gives_int8_and_what_is_named() -> None:
    model = served(quantization="nested")
    default = PrecisionChoice(precision=Precision.INT8, reason=Reason.DEFAULT)
    assert model.choose(SHORT, named=None) == default
    named = PrecisionChoice(precision=Precision.INT4, reason=Reason.NAMED)
    assert model.choose(SHORT, named=Precision.INT4) == named


def test_less_than_the_floor_is_refused_whoevers_floor_it_is() -> None:
    for model, floor in ((nested(minimum="int8"), None), (nested(), Precision.INT8)):
        with pytest.raises(UnsupportedParameter, match="minimum") as caught:
            model.choose(SHORT, named=Precision.INT4, floor=floor)
        assert caught.value.param == "precision"
        assert model.choose(SHORT, named=Precision.INT8, floor=floor) is not None


def test_a_class_that_no_rule_names_is_refused_and_a_plain_one_never() -> None:
    model = nested(rules=[{"use": "int4", "service_tiers": ["flex"]}])
    for tier in (None, "auto", "default", "flex"):
        kind = RequestKind(num_prompt_tokens=1, max_answer_tokens=1, service_tier=tier)
        choice = model.choose(kind, named=None)
        assert choice is not None
        assert choice.precision is (Precision.INT4 if tier == "flex" else Precision.INT8)
    urgent = RequestKind(num_prompt_tokens=1, max_answer_tokens=1, service_tier="priority")
    with pytest.raises(UnsupportedParameter) as caught:
        model.choose(urgent, named=None)
    assert caught.value.param == "service_tier"


def test_reports_of_pressure_change_the_choice_and_are_told() -> None:
    model = nested(shedding={"wait": "1s"})
    assert model.adjust(pressed(2.0)) == []
    (decision,) = model.adjust(pressed(2.0))
    assert decision.action == "shed-precision"
    shed = PrecisionChoice(precision=Precision.INT4, reason=Reason.SHED)
    assert model.choose(SHORT, named=None) == shed
    assert model.choose(SHORT, named=Precision.INT8) != shed


def test_without_the_setting_no_load_is_ever_shed() -> None:
    model = nested()
    assert [model.adjust(pressed(900.0)) for _ in range(9)] == [[]] * 9


def test_other_settings_count_from_the_next_request_on_and_shedding_goes_on() -> None:
    model = nested(shedding={"wait": "1s"})
    for _ in range(2):
        model.adjust(pressed(2.0))
    model.reconfigure(settings_of(default="int8", shedding={"wait": "5s", "calm": 0}))
    shed = model.choose(SHORT, named=None)
    assert shed == PrecisionChoice(precision=Precision.INT4, reason=Reason.SHED)
    (ended,) = model.adjust(pressed(2.0))  # less than half of what is now too long
    assert ended.action == "restore-precision"
    model.reconfigure(settings_of(default="int4"))
    default = PrecisionChoice(precision=Precision.INT4, reason=Reason.DEFAULT)
    assert model.choose(SHORT, named=None) == default
