"""Who gets which precision, in a table and for any policy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.core.precision import Precision
from deepseek.scheduling.precision.policy import (
    PrecisionChoice,
    PrecisionPolicy,
    PrecisionRule,
    Reason,
    RequestKind,
    finer,
)

INT8, INT4 = Precision.INT8, Precision.INT4
TIERS = st.sampled_from(["flex", "priority", None])
PRECISIONS = st.sampled_from([INT8, INT4])
TOKENS = st.integers(0, 5000)

RULES = (
    PrecisionRule(use=INT8, service_tiers=("priority",), is_kept=True),
    PrecisionRule(use=INT4, min_prompt_tokens=2000),
    PrecisionRule(use=INT4, max_answer_tokens=32, max_prompt_tokens=100),
    PrecisionRule(use=INT8, min_answer_tokens=1000),
)
POLICY = PrecisionPolicy(rules=RULES)


def kind(prompt: int = 200, answer: int = 200, tier: str | None = None) -> RequestKind:
    return RequestKind(num_prompt_tokens=prompt, max_answer_tokens=answer, service_tier=tier)


@pytest.mark.parametrize(
    ("asked", "calm", "shed"),
    [
        (kind(), (INT8, Reason.DEFAULT), (INT4, Reason.SHED)),
        (kind(tier="priority"), (INT8, Reason.RULE), (INT8, Reason.RULE)),
        (kind(prompt=3000, tier="priority"), (INT8, Reason.RULE), (INT8, Reason.RULE)),
        (kind(prompt=2000), (INT4, Reason.RULE), (INT4, Reason.RULE)),
        (kind(prompt=100, answer=32), (INT4, Reason.RULE), (INT4, Reason.RULE)),
        (kind(prompt=101, answer=32), (INT8, Reason.DEFAULT), (INT4, Reason.SHED)),
        (kind(answer=1000), (INT8, Reason.RULE), (INT4, Reason.SHED)),
    ],
)
def test_the_first_rule_that_fits_decides(
    asked: RequestKind, calm: tuple[Precision, Reason], shed: tuple[Precision, Reason]
) -> None:
    for is_shedding, (precision, reason) in ((False, calm), (True, shed)):
        choice = POLICY.choose(asked, is_shedding=is_shedding)
        assert choice == PrecisionChoice(precision=precision, reason=reason)


def test_what_a_request_names_it_gets_under_any_load() -> None:
    for named in (INT8, INT4):
        choice = POLICY.choose(kind(prompt=3000), named=named, is_shedding=True)
        assert choice == PrecisionChoice(precision=named, reason=Reason.NAMED)


def test_the_classes_that_rules_know_are_told() -> None:
    assert POLICY.service_tiers == {"priority"}
    assert PrecisionPolicy().service_tiers == set()


rules = st.builds(
    PrecisionRule,
    use=PRECISIONS,
    service_tiers=st.lists(st.sampled_from(["flex", "priority"]), max_size=2).map(tuple),
    min_prompt_tokens=TOKENS,
    max_prompt_tokens=st.none() | TOKENS,
    min_answer_tokens=TOKENS,
    max_answer_tokens=st.none() | TOKENS,
    is_kept=st.booleans(),
)
policies = st.builds(
    PrecisionPolicy, default=PRECISIONS, minimum=PRECISIONS, rules=st.lists(rules, max_size=4)
)
kinds = st.builds(
    RequestKind, num_prompt_tokens=TOKENS, max_answer_tokens=TOKENS, service_tier=TIERS
)


@given(policies, kinds, st.booleans(), st.none() | PRECISIONS)
def test_nobody_gets_less_than_any_floor(
    policy: PrecisionPolicy, asked: RequestKind, is_shedding: bool, floor: Precision | None
) -> None:
    choice = policy.choose(asked, is_shedding=is_shedding, floor=floor)
    assert choice is not None
    least = policy.minimum if floor is None else finer(floor, policy.minimum)
    assert finer(choice.precision, least) is choice.precision


@given(policies, kinds, PRECISIONS, st.booleans(), st.none() | PRECISIONS)
def test_what_is_named_is_had_exactly_or_not_at_all(
    policy: PrecisionPolicy,
    asked: RequestKind,
    named: Precision,
    is_shedding: bool,
    floor: Precision | None,
) -> None:
    choice = policy.choose(asked, named=named, is_shedding=is_shedding, floor=floor)
    is_below = INT8 in (policy.minimum, floor) and named is INT4
    assert (choice is None) == is_below
    assert choice is None or choice.precision is named


@given(policies, kinds)
def test_shedding_never_makes_an_answer_finer(policy: PrecisionPolicy, asked: RequestKind) -> None:
    calm, shed = policy.choose(asked), policy.choose(asked, is_shedding=True)
    assert calm is not None
    assert shed is not None
    assert finer(calm.precision, shed.precision) is calm.precision
    assert (shed.reason is Reason.SHED) == (shed.precision is not calm.precision)
