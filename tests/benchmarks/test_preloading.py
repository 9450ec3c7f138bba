"""The workloads and references of the benchmark `preloading`."""

from collections import Counter
from dataclasses import replace

import pytest
from frame import SHARED_DATA
from preloading_measures.references import clairvoyant, known_popularity
from preloading_measures.variants import VARIANTS
from preloading_measures.workloads import DEALS, SIZES_GB, TRACES, Workload

from deepseek.scheduling.preloading.base import Tier
from deepseek.scheduling.preloading.simulation import ModelArrival, TierSetup, simulate_tiers
from tests.scheduling.preloading.tiers import model


def setup(*names: str, fit: int) -> TierSetup:
    models = [model(name, 10) for name in names]
    return TierSetup(models=models, budgets={Tier.DEVICE: 10 * fit, Tier.HOST: 1000})


def arrivals(names: str, *, gap_s: float = 1.0) -> list[ModelArrival]:
    return [
        ModelArrival(at_s=gap_s * (n + 1), model=name, service_s=0.0)
        for n, name in enumerate(names)
    ]


def test_who_sees_the_future_and_has_the_time_never_misses() -> None:
    """Five models one after another, room for two: recency misses every time."""
    asked = arrivals("abcde" * 20)
    outcome = simulate_tiers(setup(*"abcde", fit=2), asked, clairvoyant(asked))
    assert outcome.hit_rate == 1


def test_who_knows_popularity_keeps_the_popular_ones() -> None:
    asked = arrivals("aaabbbc" * 20)
    outcome = simulate_tiers(setup(*"abc", fit=2), asked, known_popularity(asked))
    by_model = Counter(request.model for request in outcome.requests if request.is_hit)
    assert by_model["a"] + by_model["b"] >= 118
    assert by_model["c"] == 0


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_serves_a_workload(name: str) -> None:
    asked = arrivals("aabcabcd" * 10)
    outcome = simulate_tiers(setup(*"abcd", fit=2), asked, VARIANTS[name]())
    assert len(outcome.requests) == 80


@pytest.mark.parametrize("sizes", SIZES_GB)
def test_memory_is_for_four_models_of_mean_size(sizes: str) -> None:
    tiers = Workload(trace="azure code", deal="streams", sizes=sizes, num_requests=1).setup()
    mean = sum(state.device_bytes for state in tiers.models) / 10
    assert tiers.budgets[Tier.DEVICE] == pytest.approx(4 * mean)
    assert all(state.device_bytes <= tiers.budgets[Tier.DEVICE] for state in tiers.models)


@pytest.mark.parametrize("deal", DEALS)
@pytest.mark.parametrize("trace", TRACES)
def test_popularity_and_pace_are_as_said(trace: str, deal: str) -> None:
    workload = Workload(trace=trace, deal=deal, num_requests=1000)
    if not (SHARED_DATA / "traces").is_dir():
        pytest.skip("the public traces are not here")
    asked = workload.arrivals()
    counts = Counter(request.model for request in asked)
    assert counts["m0"] / len(asked) == pytest.approx(0.34, abs=0.06)
    assert counts["m1"] / counts["m0"] == pytest.approx(0.5, abs=0.15)
    span_s = asked[-1].at_s - asked[0].at_s
    assert span_s / len(asked) == pytest.approx(4.0, rel=0.01)
    slower = replace(workload, gap_s=8.0).arrivals()
    assert slower[-1].at_s == pytest.approx(2 * asked[-1].at_s)
