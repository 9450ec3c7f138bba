"""Replays the prompts of a trace against a prefix cache: who finds how much of each prompt?

The order of events does not depend on what the cache finds: a request starts when the oldest of
`max_running` has ended, or earlier ones have made room. So two caches see exactly the same.

Standard library only: it runs in vLLM's environment as well.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

BLOCK_TOKENS = 16
"""Tokens of one block of attention state; the default of both."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the trace, scaled."""

    prefix_blocks: tuple[int, ...]
    """Equal leading ids mean equal leading tokens."""
    num_prompt: int
    num_output: int


@dataclass(frozen=True, slots=True)
class Result:
    """What one replay found."""

    num_prompt_tokens: int
    num_hit_tokens: int
    seconds: float
    """Of the cache's own work, digests included."""


class PrefixCache(Protocol):
    """Blocks of attention state for running requests, and what stays of ended ones."""

    def start(self, tokens: list[int], num_output: int) -> tuple[Any, int] | None:
        """Take blocks for a prompt and its answer; the prompt counts as computed at once.

        Returns a handle and the number of prompt tokens found; None, and nothing changed, where
        running requests leave too little room.
        """
        ...

    def end(self, handle: Any, answer: list[int]) -> None:
        """Give the blocks of a request back, with the tokens that were generated."""
        ...


def replay(
    cache: PrefixCache, requests: Sequence[Request], *, tokens_per_id: int, max_running: int
) -> Result:
    """Send every request in the trace's order; raises `ValueError` where one never fits."""
    running: deque[tuple[Any, list[int]]] = deque()
    num_prompt = num_hit = 0
    seconds = 0.0
    for request, prompt, answer in _with_tokens(requests, tokens_per_id):
        start_s = time.perf_counter()
        if len(running) == max_running:
            cache.end(*running.popleft())
        while (started := cache.start(prompt, request.num_output)) is None:
            if not running:
                raise ValueError(f"a request of {request.num_prompt} tokens does not fit")
            cache.end(*running.popleft())
        handle, found = started
        seconds += time.perf_counter() - start_s
        running.append((handle, answer))
        num_prompt += len(prompt)
        num_hit += found
    return Result(num_prompt, num_hit, seconds)


def _with_tokens(
    requests: Sequence[Request], tokens_per_id: int
) -> Iterator[tuple[Request, list[int], list[int]]]:
    """Make tokens of ids: each id stands for its own run of tokens, each answer is new."""
    largest = max(block for request in requests for block in request.prefix_blocks)
    next_new = (largest + 1) * tokens_per_id
    for request in requests:
        prompt = [
            token
            for block in request.prefix_blocks
            for token in range(block * tokens_per_id, (block + 1) * tokens_per_id)
        ]
        answer = list(range(next_new, next_new + request.num_output))
        next_new += request.num_output
        yield request, prompt[: request.num_prompt], answer
