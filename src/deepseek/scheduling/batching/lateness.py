"""Who of a queue can still be in time, and who gives way so that the most are."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from deepseek.scheduling.batching.base import QueuedRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast prompts are computed, one after the other in steps of `chunk` tokens."""

    chunk: int
    step_s: float
    """What each step takes whatever it holds of prompts."""
    per_token_s: float
    """What one more token of a prompt adds."""
    per_pair_s: float
    """What one more pair of tokens adds that attend to each other."""
    place_s: float
    """Time in which a running request ends and makes place for another."""


def split_late(
    queue: Sequence[QueuedRequest], pace: Pace, *, now_s: float, ahead: int, num_places: int
) -> tuple[list[QueuedRequest], list[QueuedRequest]]:
    """Return those that can be in time, in the order of the queue, and those that cannot.

    `queue` is in order of deadlines; `ahead` tokens come before it; `num_places` of it may begin
    before a running one must end. Whenever one could not be in time, the longest prompt up to it
    gives way: nothing else leaves more of them in time (Moore, Management Science 15, 1968).
    """
    # Written for speed: it looks at every request before every step.
    chunk, step_s, per_token_s = pace.chunk, pace.step_s, pace.per_token_s
    half_pair_s = pace.per_pair_s / 2
    ahead_s = ahead * per_token_s
    kept: dict[int, QueuedRequest] = {}  # by place in the queue
    late: list[QueuedRequest] = []
    # A heap of those kept; made when first somebody must give way.
    longest: list[tuple[int, int]] | None = None
    for place, request in enumerate(queue):
        tokens = request.num_pending
        left_s = request.due_s - now_s
        if len(kept) >= num_places:
            left_s -= (len(kept) + 1 - num_places) * pace.place_s
        reached = ahead + tokens
        own_s = tokens * (per_token_s + tokens * half_pair_s)
        if -(-reached // chunk) * step_s + ahead_s + own_s <= left_s:
            if longest is not None:
                heapq.heappush(longest, (-tokens, place))
            kept[place] = request
            ahead = reached
            ahead_s += own_s
            continue
        if longest is None:
            longest = [(-r.num_pending, n) for n, r in kept.items()]
            heapq.heapify(longest)
        is_longest = not longest or tokens >= -longest[0][0]
        if is_longest or -(-tokens // chunk) * step_s + own_s > left_s:
            late.append(request)  # even if it were the next, in the second case
            continue
        minus_tokens, given_way = heapq.heapreplace(longest, (-tokens, place))
        late.append(kept.pop(given_way))
        kept[place] = request
        ahead = reached + minus_tokens
        ahead_s += own_s + minus_tokens * (per_token_s - minus_tokens * half_pair_s)
    return list(kept.values()), late
