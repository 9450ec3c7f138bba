"""Blocks: sharing, publishing, eviction; nothing is lost and nothing given twice."""

import random

from hypothesis import given
from hypothesis import strategies as st

from deepseek.engine.kv_cache import BlockPool, common_prefix, extend_digests


def chain(tokens: list[int], *, salt: bytes = b"", block_tokens: int = 4) -> list[bytes]:
    digests: list[bytes] = []
    extend_digests(digests, tokens, block_tokens=block_tokens, salt=salt)
    return digests


def run_once(pool: BlockPool, tokens: list[int]) -> int:
    """Take a sequence through the pool as the engine does; return how many blocks were shared."""
    digests = chain(tokens)
    shared = pool.match(digests)
    pool.share(shared)
    taken = pool.allocate(len(digests) - len(shared))
    assert taken is not None
    blocks = shared + taken
    for block, digest in zip(blocks, digests, strict=True):
        pool.publish(block, digest)
    pool.release(blocks)
    return len(shared)


def test_a_chain_grows_without_being_computed_again() -> None:
    tokens = list(range(20))
    digests = chain(tokens[:9])
    assert len(digests) == 2
    extend_digests(digests, tokens, block_tokens=4)
    assert digests == chain(tokens)


def test_equal_tokens_after_different_beginnings_have_different_digests() -> None:
    assert chain([1, 2, 3, 4, 9, 9, 9, 9])[1] != chain([1, 2, 3, 5, 9, 9, 9, 9])[1]


def test_a_salt_keeps_equal_tokens_apart() -> None:
    assert not set(chain(list(range(12)))) & set(chain(list(range(12)), salt=b"adapter"))


def test_a_prefix_is_found_until_its_memory_is_needed() -> None:
    pool = BlockPool(4, block_tokens=4)
    assert run_once(pool, list(range(12))) == 0
    assert run_once(pool, [*range(8), 50, 51, 52, 53]) == 2
    assert pool.num_used == 0
    assert pool.num_cached == 4
    assert run_once(pool, [90] * 16) == 0
    assert pool.match(chain(list(range(12)))) == []


def test_the_end_of_a_prefix_goes_before_its_beginning() -> None:
    pool = BlockPool(4, block_tokens=4)
    run_once(pool, list(range(16)))
    assert pool.allocate(1) is not None
    assert len(pool.match(chain(list(range(16))))) == 3


def test_the_least_recently_used_prefix_goes_first() -> None:
    pool = BlockPool(4, block_tokens=4)
    run_once(pool, [1] * 8)
    run_once(pool, [2] * 8)
    run_once(pool, [1] * 8)
    assert pool.allocate(2) is not None
    assert len(pool.match(chain([1] * 8))) == 2
    assert pool.match(chain([2] * 8)) == []


def test_more_than_there_is_changes_nothing() -> None:
    pool = BlockPool(3, block_tokens=4)
    run_once(pool, [1] * 8)
    assert pool.allocate(4) is None
    assert (pool.num_free, pool.num_cached) == (3, 2)


def test_discarded_blocks_are_never_found_again() -> None:
    pool = BlockPool(4, block_tokens=4)
    digests = chain([1] * 8)
    blocks = pool.allocate(2)
    assert blocks is not None
    for block, digest in zip(blocks, digests, strict=True):
        pool.publish(block, digest)
    pool.discard(blocks)
    assert pool.match(digests) == []
    assert (pool.num_free, pool.num_cached) == (4, 0)


def test_a_shared_block_lives_as_long_as_its_last_user() -> None:
    pool = BlockPool(2, block_tokens=4)
    run_once(pool, [1] * 4)
    shared = pool.match(chain([1] * 4))
    pool.share(shared)
    pool.share(shared)
    pool.release(shared)
    assert pool.num_used == 1
    assert pool.allocate(2) is None
    pool.release(shared)
    assert pool.num_used == 0


@given(st.integers(0, 10_000))
def test_no_block_is_ever_given_to_two_or_lost(seed: int) -> None:
    rng = random.Random(seed)
    pool = BlockPool(12, block_tokens=2)
    held: list[tuple[list[int], list[bytes]]] = []
    content: dict[int, bytes] = {}
    for _ in range(60):
        if held and rng.random() < 0.45:
            blocks, _ = held.pop(rng.randrange(len(held)))
            (pool.release if rng.random() < 0.8 else pool.discard)(blocks)
            continue
        tokens = [rng.randrange(2) for _ in range(2 * rng.randrange(1, 7))]
        digests = chain(tokens, block_tokens=2)
        shared = pool.match(digests)
        assert [content[block] for block in shared] == digests[: len(shared)]
        pool.share(shared)
        taken = pool.allocate(len(digests) - len(shared))
        if taken is None:
            pool.release(shared)
            continue
        in_use = {block for blocks, _ in held for block in blocks}
        assert not in_use & set(taken)
        for block, digest in zip(taken, digests[len(shared) :], strict=True):
            content[block] = digest
            pool.publish(block, digest)
        held.append((shared + taken, digests))
        assert pool.num_used == len({block for blocks, _ in held for block in blocks})
    for blocks, _ in held:
        pool.release(blocks)
    assert pool.num_used == 0
    assert pool.num_free == 12


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_common_prefix_is_the_longest(left: list[int], right: list[int]) -> None:
    length = common_prefix(left, right)
    assert left[:length] == right[:length]
    assert length == min(len(left), len(right)) or left[length] != right[length]
