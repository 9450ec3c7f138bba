"""The replay of a trace: what is found, what is forgotten, what never fits."""

import pytest
from prefix_measures.blocks import OurBlocks
from prefix_measures.hit_rate import most_hit_tokens
from prefix_measures.replay import Request, replay

TOKENS_PER_ID = 64  # as the benchmark's scale makes of 512


def hits(requests: list[Request], *, num_blocks: int, max_running: int = 2) -> int:
    result = replay(
        OurBlocks(num_blocks), requests, tokens_per_id=TOKENS_PER_ID, max_running=max_running
    )
    assert result.num_prompt_tokens == sum(request.num_prompt for request in requests)
    return result.num_hit_tokens


def test_a_prompt_finds_the_full_blocks_of_an_equal_beginning() -> None:
    requests = [Request((1, 2), 128, 20), Request((1, 3), 128, 20), Request((1, 2), 128, 20)]
    # The third computes its last block again: the last token's row gives the next token.
    assert hits(requests, num_blocks=100) == 64 + 112
    assert most_hit_tokens(requests) == 64 + 112


def test_a_partial_block_is_not_found() -> None:
    requests = [Request((1, 2), 70, 4), Request((1, 2), 70, 4)]
    assert hits(requests, num_blocks=100) == 64
    assert most_hit_tokens(requests) == 64


def test_a_cache_without_room_forgets_the_oldest() -> None:
    requests = [Request((1,), 64, 16), Request((2,), 64, 16), Request((1,), 64, 16)]
    assert hits(requests, num_blocks=15, max_running=1) == 48
    assert hits(requests, num_blocks=5, max_running=1) == 0


def test_requests_end_early_where_the_next_needs_their_room() -> None:
    requests = [Request((number,), 64, 16) for number in range(3)]
    assert hits(requests, num_blocks=5, max_running=3) == 0


def test_a_request_larger_than_the_cache_is_an_error() -> None:
    with pytest.raises(ValueError, match="64 tokens does not fit"):
        hits([Request((1,), 64, 17)], num_blocks=5)
