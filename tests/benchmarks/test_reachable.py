"""The bound of the benchmark `batching` beside trying out every choice of requests."""

import itertools
import random

import pytest
from batching_measures.reachable import most_in_time
from batching_measures.workloads import TTFT_S

from deepseek.scheduling.batching.base import StepLimits
from deepseek.scheduling.simulation.requests import Arrival
from deepseek.scheduling.simulation.step_times import StepTimes

TIMES = StepTimes(
    fixed_s=0.0, per_prefill_token_s=0.01, per_decoding_s=0.001, per_context_token_s=0.0
)
LIMITS = StepLimits(max_tokens=192, max_sequences=64)


@pytest.mark.parametrize("seed", range(40))
def test_no_choice_of_requests_has_more_in_time(seed: int) -> None:
    draws = random.Random(seed)
    arrivals = [
        Arrival(at_s=draws.uniform(0, 2.5), prompt_tokens=draws.randint(5, 90)) for _ in range(9)
    ]
    assert most_in_time(arrivals, TIMES, LIMITS) == pytest.approx(100 * _most_by_trying(arrivals))


def test_all_are_in_time_where_each_is_done_before_the_next() -> None:
    arrivals = [Arrival(at_s=float(n), prompt_tokens=90) for n in range(20)]
    assert most_in_time(arrivals, TIMES, LIMITS) == 100


def test_a_prompt_that_takes_longer_than_its_deadline_is_never_in_time() -> None:
    arrivals = [Arrival(at_s=0.0, prompt_tokens=101), Arrival(at_s=0.1, prompt_tokens=10)]
    assert most_in_time(arrivals, TIMES, LIMITS) == 50


def _most_by_trying(arrivals: list[Arrival]) -> float:
    ordered = sorted(arrivals, key=lambda arrival: arrival.at_s)
    for count in range(len(ordered), 0, -1):
        if any(_all_in_time(chosen) for chosen in itertools.combinations(ordered, count)):
            return count / len(ordered)
    return 0.0


def _all_in_time(chosen: tuple[Arrival, ...]) -> bool:
    ends_s = 0.0
    for arrival in chosen:
        ends_s = max(ends_s, arrival.at_s) + arrival.prompt_tokens * TIMES.per_prefill_token_s
        if ends_s > arrival.at_s + TTFT_S:
            return False
    return True
