"""What is kept of decisions: the last ones of each model, and no stranger's."""

import logging

import pytest

from deepseek.core.decisions import Decision, TimeScale
from deepseek.serving.kept_decisions import KeptDecisions


def decision(model: str, action: str) -> Decision:
    return Decision(
        at_s=1.0, model=model, scale=TimeScale.MEDIUM, action=action, reason="so it was"
    )


def test_the_last_ones_of_each_model_are_kept_in_order() -> None:
    kept = KeptDecisions({"a": 2, "b": 3})
    kept.add([decision("a", "first"), decision("b", "other"), decision("a", "second")])
    kept.add([decision("a", "third")])
    assert [one.decision.action for one in kept.of("a")] == ["second", "third"]
    assert [one.decision.action for one in kept.of("b")] == ["other"]


def test_a_decision_about_no_model_here_is_said_and_loses_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = KeptDecisions({"a": 2})
    with caplog.at_level(logging.WARNING):
        kept.add([decision("stranger", "what"), decision("a", "first")])
    assert [one.decision.action for one in kept.of("a")] == ["first"]
    assert "'stranger'" in caplog.text
