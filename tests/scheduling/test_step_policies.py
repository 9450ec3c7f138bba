"""Which model steps next: shares, work conservation, no credit for idleness."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.core.errors import ConfigurationError
from deepseek.scheduling.step_policies import FairShare, RoundRobin, make_step_policy


def run(policy: FairShare, costs: dict[str, float], total_s: float) -> dict[str, float]:
    used = dict.fromkeys(costs, 0.0)
    while sum(used.values()) < total_s:
        model = policy.pick(list(costs))
        policy.charge(model, costs[model])
        used[model] += costs[model]
    return used


@given(
    st.dictionaries(
        st.sampled_from("abcde"),
        st.tuples(st.floats(0.1, 10), st.floats(0.001, 0.1)),
        min_size=1,
    )
)
def test_backlogged_models_get_device_time_in_proportion_to_their_shares(
    models: dict[str, tuple[float, float]],
) -> None:
    shares = {name: share for name, (share, _) in models.items()}
    costs = {name: cost for name, (_, cost) in models.items()}
    total_s = 60.0
    used = run(FairShare(shares), costs, total_s)
    longest_s = max(costs.values())
    for name, share in shares.items():
        fair_s = total_s * share / sum(shares.values())
        bound_s = longest_s * (1 + share / min(shares.values())) + longest_s
        assert abs(used[name] - fair_s) <= bound_s * len(shares)


def test_idleness_earns_no_credit() -> None:
    policy = FairShare({"busy": 1.0, "idle": 1.0})
    for _ in range(100):
        policy.charge(policy.pick(["busy"]), 1.0)
    picks = []
    for _ in range(10):
        model = policy.pick(["busy", "idle"])
        policy.charge(model, 1.0)
        picks.append(model)
    assert 4 <= picks.count("idle") <= 6


def test_round_robin_takes_turns_among_those_with_work() -> None:
    policy = RoundRobin({"a": 1.0, "b": 1.0, "c": 1.0})
    assert [policy.pick(["a", "c"]) for _ in range(4)] == ["a", "c", "a", "c"]


def test_an_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="fair-share, round-robin"):
        make_step_policy("lottery", {})


@pytest.mark.parametrize("name", ["fair-share", "round-robin"])
def test_every_built_in_policy_picks_only_what_is_ready(name: str) -> None:
    policy = make_step_policy(name, {"a": 1.0, "b": 2.0})
    for ready in (["a"], ["b"], ["a", "b"], ["b"]):
        chosen = policy.pick(ready)
        policy.charge(chosen, 0.01)
        assert chosen in ready
