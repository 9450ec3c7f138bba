"""Full load, and arrivals at a part of it."""

import pytest

from deepseek.core.qos import QoS
from deepseek.scheduling.simulation.capacity import at_rate, capacity
from deepseek.scheduling.simulation.requests import Arrival
from deepseek.telemetry.meters import ModelMeter
from tests.scheduling.simulation.loads import CONSTANT, outcome_of, poisson, setup


def test_capacity_is_what_full_batches_serve() -> None:
    # 64 at once, 10 steps of 0.1 s each: one for the prompts (2 tokens each fit), 9 more tokens.
    arrivals = [Arrival(at_s=float(n), prompt_tokens=2, output_tokens=10) for n in range(640)]
    model = setup(arrivals, times=CONSTANT, qos=QoS(policy="slack", ttft_s=0.1, itl_s=0.01))
    assert capacity(model, make_meter=ModelMeter) == pytest.approx(64.0)


def test_arrivals_keep_their_pattern_at_another_rate() -> None:
    arrivals = poisson(50, per_second=3.0)
    paced = at_rate(arrivals, 12.0)
    assert paced[0].at_s == 0.0
    assert paced[-1].at_s == pytest.approx(50 / 12.0)
    factors = {
        round((b.at_s - paced[0].at_s) / (a.at_s - arrivals[0].at_s), 9)
        for a, b in zip(arrivals[1:], paced[1:], strict=True)
    }
    assert len(factors) == 1
    assert [a.prompt_tokens for a in paced] == [a.prompt_tokens for a in arrivals]


def test_below_capacity_the_queue_stays_short_and_above_it_grows() -> None:
    model = setup(poisson(600, per_second=1.0))
    full_per_s = capacity(model, make_meter=ModelMeter)
    light = outcome_of(setup(at_rate(model.arrivals, 0.5 * full_per_s)))
    heavy = outcome_of(setup(at_rate(model.arrivals, 2.0 * full_per_s)))
    assert light.ttft_percentile(99) < 1.0
    assert heavy.ttft_percentile(99) > 5.0
