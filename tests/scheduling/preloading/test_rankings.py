import pytest

from deepseek.scheduling.preloading.base import Tier
from deepseek.scheduling.preloading.demand import Demand
from deepseek.scheduling.preloading.rankings import Foreseen, GreedyDual, Ranking, Recency
from tests.scheduling.preloading.tiers import BOTH, HOST, model


def order(ranking: Ranking, *models: tuple[str, int], tier: Tier = Tier.DEVICE) -> list[str]:
    """Return the names, the least worth first."""
    states = [model(name, size) for name, size in models]
    states.sort(key=lambda state: ranking.worth(state, tier, now_s=1000.0))
    return [state.name for state in states]


def test_recency_gives_up_the_one_that_was_never_used_then_the_oldest() -> None:
    ranking = Recency()
    for now_s, name in enumerate("abca"):
        ranking.observe(name, now_s=float(now_s))
    assert order(ranking, ("a", 1), ("b", 1), ("c", 1), ("never", 1)) == ["never", "b", "c", "a"]


def test_greedy_dual_is_clock_plus_frequency_times_cost_over_size() -> None:
    ranking = GreedyDual()
    for name in "aaab":
        ranking.observe(name, now_s=0.0)
    state = model("a", 50)
    assert ranking.worth(state, Tier.DEVICE, now_s=0.0) == pytest.approx(3 * 0.5 / 50)
    assert ranking.worth(state, Tier.HOST, now_s=0.0) == pytest.approx(3 * 5.0 / 50)
    ranking.note_evicted(7.0, Tier.DEVICE)
    assert ranking.worth(state, Tier.DEVICE, now_s=0.0) == pytest.approx(3 * 0.5 / 50)
    ranking.observe("a", now_s=1.0)
    assert ranking.worth(state, Tier.DEVICE, now_s=1.0) == pytest.approx(7 + 4 * 0.5 / 50)
    assert ranking.worth(state, Tier.HOST, now_s=1.0) == pytest.approx(4 * 5.0 / 50)


def test_greedy_dual_overtakes_what_is_not_asked_for_any_more() -> None:
    """Used a hundred times long ago; the others come and go, and each eviction moves the clock."""
    ranking = GreedyDual()
    for _ in range(100):
        ranking.observe("once-loved", now_s=0.0)
    num_evictions = 0
    while order(ranking, ("once-loved", 10), ("x", 10), ("y", 10))[0] != "once-loved":
        victim = order(ranking, ("x", 10), ("y", 10))[0]
        ranking.note_evicted(ranking.worth(model(victim, 10), Tier.DEVICE, now_s=0.0), Tier.DEVICE)
        ranking.observe(victim, now_s=0.0)
        num_evictions += 1
        assert num_evictions < 500
    assert num_evictions > 10


def test_telling_of_an_eviction_again_changes_nothing() -> None:
    ranking = GreedyDual()
    ranking.note_evicted(5.0, Tier.DEVICE)
    ranking.note_evicted(5.0, Tier.DEVICE)
    ranking.note_evicted(2.0, Tier.DEVICE)
    ranking.observe("a", now_s=0.0)
    assert ranking.worth(model("a", 10), Tier.DEVICE, now_s=0.0) == pytest.approx(5.01)


def test_foreseen_counts_by_the_byte() -> None:
    ranking = Foreseen(Demand())
    for second in range(100):
        ranking.observe("large", now_s=second * 10.0)
        if second % 2 == 0:
            ranking.observe("small", now_s=second * 10.0)
    assert order(ranking, ("large", 100), ("small", 10)) == ["large", "small"]
    assert order(ranking, ("large", 10), ("small", 10)) == ["small", "large"]


def test_a_host_copy_behind_the_devices_own_goes_first() -> None:
    ranking = Foreseen(Demand())
    for second in range(10):
        ranking.observe("popular", now_s=float(second))
    ranking.observe("seldom", now_s=9.0)
    behind = ranking.worth(model("popular", held=BOTH), Tier.HOST, now_s=10.0)
    alone = ranking.worth(model("seldom", held=HOST), Tier.HOST, now_s=10.0)
    assert behind < alone
