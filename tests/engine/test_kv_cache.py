"""Slots, prefix reuse and physical memory of `deepseek.engine.kv_cache`."""

import mmap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepseek.engine.kv_cache import KVCache, KVShape, common_prefix
from deepseek.engine.memory import resident_bytes

SHAPE = KVShape(num_layers=2, num_kv_heads=2, head_dim=8, dtype=torch.float32)


def make_cache(num_slots: int = 4, capacity_tokens: int = 1000) -> KVCache:
    return KVCache(
        SHAPE, num_slots=num_slots, max_len=256, capacity_tokens=capacity_tokens, device="cpu"
    )


def fill(cache: KVCache, tokens: list[int]) -> int:
    """Run a sequence through the cache, its rows holding its token ids; return tokens reused."""
    acquired = cache.acquire(tokens)
    assert acquired is not None
    slot, num_held = acquired
    assert cache.reserve(slot, len(tokens))
    rows = torch.arange(cache.row(slot, 0), cache.row(slot, len(tokens)))
    for layer in range(SHAPE.num_layers):
        held = cache.layers[layer][rows[:num_held], 0].tolist()
        assert held == tokens[:num_held], "a reused row holds another token's state"
        cache.layers[layer][rows] = torch.tensor(tokens, dtype=torch.float32)[:, None]
    slot.tokens = list(tokens)
    cache.release(slot)
    return num_held


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix_is_what_a_plain_loop_finds(left: list[int], right: list[int]) -> None:
    expected = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        expected += 1
    assert common_prefix(left, right) == expected


def test_a_prompt_takes_over_the_rows_of_an_equal_beginning() -> None:
    cache = make_cache()
    system = list(range(100))
    assert fill(cache, [*system, 500]) == 0
    assert fill(cache, [*system, 600, 601]) == 100


def test_the_last_prompt_token_is_always_computed() -> None:
    cache = make_cache()
    assert fill(cache, list(range(50))) == 0
    assert fill(cache, list(range(50))) == 49


def test_a_short_shared_beginning_leaves_a_long_cached_conversation_whole() -> None:
    cache = make_cache()
    conversation = list(range(200))
    fill(cache, conversation)
    assert fill(cache, [*range(30), 900]) == 30
    assert fill(cache, conversation) == 199


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=120), min_size=1, max_size=12))
def test_residency_never_exceeds_capacity_and_reused_rows_are_right(
    prompts: list[list[int]],
) -> None:
    cache = make_cache(num_slots=3, capacity_tokens=200)
    for prompt in prompts:
        fill(cache, prompt)
        assert cache.resident_tokens <= 200


def test_no_room_is_told_before_anything_is_written() -> None:
    cache = make_cache(num_slots=2, capacity_tokens=100)
    first = cache.acquire(list(range(80)))
    second = cache.acquire([7] * 60)
    assert first is not None
    assert second is not None
    assert cache.reserve(first[0], 80)
    assert not cache.reserve(second[0], 60)
    assert cache.reserve(second[0], 20)


def test_every_slot_in_use_means_none() -> None:
    cache = make_cache(num_slots=1)
    assert cache.acquire([1]) is not None
    assert cache.acquire([1]) is None


def test_eviction_gives_physical_memory_back() -> None:
    shape = KVShape(num_layers=1, num_kv_heads=64, head_dim=64, dtype=torch.float32)
    cache = KVCache(shape, num_slots=2, max_len=4096, capacity_tokens=9000, device="cpu")
    before = resident_bytes()
    acquired = cache.acquire([1, 2, 3])
    assert acquired is not None
    slot, _ = acquired
    assert cache.reserve(slot, 4096)
    cache.layers[0][: cache.row(slot, 4096)] = 1.0
    written = 4096 * shape.row_bytes
    assert resident_bytes() - before > 0.9 * written
    cache.evict(slot)
    assert resident_bytes() - before < 0.1 * written
    assert cache.layers[0][cache.row(slot, 0), 0] == 0


def test_slots_start_on_page_boundaries() -> None:
    cache = make_cache()
    slots = [cache.acquire([n])[0] for n in range(4)]  # type: ignore[index]
    for slot in slots:
        assert cache.row(slot, 0) * SHAPE.row_bytes % mmap.PAGESIZE == 0


@pytest.mark.gpu
def test_a_gpu_cache_holds_the_same_rows() -> None:
    cache = KVCache(SHAPE, num_slots=2, max_len=64, capacity_tokens=128, device="cuda")
    assert cache.layers.device.type == "cuda"
