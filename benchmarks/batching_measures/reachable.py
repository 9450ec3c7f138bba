"""How many requests could be in time at all: a bound for every policy, however much it foresees."""

from collections.abc import Sequence

from batching_measures.workloads import TTFT_S
from deepseek.scheduling.batching.base import StepLimits, prompt_pairs
from deepseek.scheduling.simulation.requests import Arrival
from deepseek.scheduling.simulation.step_times import StepTimes


class _Job:
    """A prompt in the schedule; plain slots, for a burst has thousands of them."""

    __slots__ = ("arrived_s", "begins_s", "seconds")

    def __init__(self, arrived_s: float, *, seconds: float, begins_s: float) -> None:
        self.arrived_s = arrived_s
        self.seconds = seconds
        self.begins_s = begins_s


def most_in_time(arrivals: Sequence[Arrival], times: StepTimes, limits: StepLimits) -> float:
    """Return the percentage that somebody who knew all arrivals could answer in time, at most.

    Prompts alone count, in the largest steps there are; decoding is taken to cost nothing, so that
    no real policy reaches the bound. As all have the same time to their first token, going by
    arrival is the best order, and the fewest prompts are left out by dropping, whenever one would
    be late, that one of the busy period which frees the most time (Kise, Ibaraki and Mine,
    Operations Research 26(1), 1978).
    """
    num_dropped = 0
    ends_s = 0.0
    period: list[_Job] = []
    for arrival in sorted(arrivals, key=lambda one: one.at_s):
        if arrival.at_s >= ends_s:
            period, ends_s = [], arrival.at_s
        seconds = _prompt_s(arrival, times, limits)
        period.append(_Job(arrival.at_s, seconds=seconds, begins_s=ends_s))
        ends_s += seconds
        if ends_s > arrival.at_s + TTFT_S:
            num_dropped += 1
            ends_s = _without_the_worst(period, ends_s)
    return 100 * (1 - num_dropped / len(arrivals))


def _prompt_s(arrival: Arrival, times: StepTimes, limits: StepLimits) -> float:
    """Return the least device time of a prompt: its part of full steps."""
    per_token_s = (
        times.fixed_s / limits.max_tokens + times.per_prefill_token_s + times.per_context_token_s
    )
    pairs = prompt_pairs(arrival.prompt_tokens, start=0)
    return arrival.prompt_tokens * per_token_s + pairs * times.per_prefill_pair_s


def _without_the_worst(period: list[_Job], ends_s: float) -> float:
    """Drop the prompt that frees the most time; return when the rest is done."""
    most_s, worst = 0.0, len(period) - 1
    movable_s = float("inf")  # how much earlier all later ones could begin
    for place in range(len(period) - 1, -1, -1):
        job = period[place]
        if min(job.seconds, movable_s) > most_s:
            most_s, worst = min(job.seconds, movable_s), place
        movable_s = min(movable_s, job.begins_s - job.arrived_s)
    ends_s = period[worst].begins_s
    del period[worst]
    for job in period[worst:]:
        job.begins_s = max(ends_s, job.arrived_s)
        ends_s = job.begins_s + job.seconds
    return ends_s
