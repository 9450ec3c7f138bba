"""Who of a queue gives way: as few as possible, and nobody who could stay."""

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from deepseek.scheduling.batching.lateness import Pace, split_late
from tests.scheduling.batching.queue import Queued

A_TOKEN_A_SECOND = Pace(chunk=1, step_s=0.0, per_token_s=1.0, per_pair_s=0.0, place_s=0.0)
MANY = 100


def queue_of(*tokens_and_due: tuple[int, float]) -> list[Queued]:
    ordered = sorted(tokens_and_due, key=lambda one: one[1])
    return [Queued(n, due_s=due_s, num_pending=size) for n, (size, due_s) in enumerate(ordered)]


def all_in_time(chosen: Sequence[Queued], *, ahead: int) -> bool:
    ends = itertools.accumulate((r.num_pending for r in chosen), initial=ahead)
    return all(end <= r.due_s for end, r in zip(list(ends)[1:], chosen, strict=True))


queues = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 40).map(float)), max_size=8)


@given(queues, st.integers(0, 10))
def test_no_other_choice_leaves_more_in_time(
    tokens_and_due: list[tuple[int, float]], ahead: int
) -> None:
    queue = queue_of(*tokens_and_due)
    in_time, late = split_late(queue, A_TOKEN_A_SECOND, now_s=0.0, ahead=ahead, num_places=MANY)
    assert sorted(r.id for r in (*in_time, *late)) == [r.id for r in queue]
    kept = {r.id for r in in_time}
    assert [r.id for r in in_time] == [r.id for r in queue if r.id in kept]
    assert all_in_time([r for r in queue if r.id in kept], ahead=ahead)
    most = max(
        size
        for size in range(len(queue) + 1)
        for chosen in itertools.combinations(queue, size)
        if all_in_time(chosen, ahead=ahead)
    )
    assert len(in_time) == most


def test_the_longest_prompt_gives_way_to_several_short_ones() -> None:
    queue = queue_of((90, 100.0), (30, 101.0), (30, 102.0))
    in_time, late = split_late(queue, A_TOKEN_A_SECOND, now_s=0.0, ahead=0, num_places=MANY)
    assert [r.num_pending for r in in_time] == [30, 30]
    assert [r.num_pending for r in late] == [90]


def test_every_step_that_prompts_are_cut_into_takes_its_own_time() -> None:
    pace = Pace(chunk=10, step_s=5.0, per_token_s=1.0, per_pair_s=0.0, place_s=0.0)
    for due_s, num_in_time in ((29.0, 0), (31.0, 1)):  # two steps of 5 s and 20 tokens
        in_time, _ = split_late(queue_of((20, due_s)), pace, now_s=0.0, ahead=0, num_places=MANY)
        assert len(in_time) == num_in_time


def test_a_long_prompt_takes_more_than_its_tokens() -> None:
    pace = Pace(chunk=100, step_s=0.0, per_token_s=1.0, per_pair_s=0.1, place_s=0.0)
    for due_s, num_in_time in ((39.0, 0), (41.0, 1)):  # 20 s, and 400 / 2 pairs of 0.1 s
        in_time, _ = split_late(queue_of((20, due_s)), pace, now_s=0.0, ahead=0, num_places=MANY)
        assert len(in_time) == num_in_time


def test_who_finds_no_place_waits_until_somebody_has_ended() -> None:
    pace = Pace(chunk=1, step_s=0.0, per_token_s=1.0, per_pair_s=0.0, place_s=20.0)
    queue = queue_of((1, 10.0), (1, 10.0), (1, 100.0))
    in_time, late = split_late(queue, pace, now_s=0.0, ahead=0, num_places=1)
    assert [r.due_s for r in in_time] == [10.0, 100.0]
    assert [r.due_s for r in late] == [10.0]
