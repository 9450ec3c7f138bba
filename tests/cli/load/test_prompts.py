"""Prompts of a wanted length, distinct unless the trace says that they share a prefix."""

from hypothesis import given
from hypothesis import strategies as st

from deepseek.cli.load.prompts import (
    TokenScale,
    measure_token_scale,
    random_text,
    text_of_blocks,
)


async def test_two_prompts_reveal_the_scale_of_a_server() -> None:
    async def count(text: str) -> int | None:
        return 2 * len(text.split()) + 30

    scale = await measure_token_scale(count)
    assert scale == TokenScale(tokens_per_word=2.0, fixed_tokens=30.0)
    assert scale.words_for(130) == 50


async def test_a_server_that_counts_nothing_gets_one_word_per_token() -> None:
    async def count(text: str) -> int | None:
        return None

    assert (await measure_token_scale(count)).words_for(77) == 77


@given(st.integers(1, 5000), st.floats(0.5, 4.0), st.floats(0, 100))
def test_the_prompt_comes_within_a_word_of_the_wanted_length(
    tokens: int, per_word: float, fixed: float
) -> None:
    scale = TokenScale(tokens_per_word=per_word, fixed_tokens=fixed)
    words = scale.words_for(tokens)
    assert words == 1 or abs(fixed + per_word * words - tokens) <= per_word


def test_texts_differ_by_seed_and_repeat_by_seed() -> None:
    assert random_text(20, seed=1) == random_text(20, seed=1)
    assert random_text(20, seed=1) != random_text(20, seed=2)
    assert len(random_text(20, seed=1).split()) == 20


def test_equal_leading_blocks_give_equal_leading_text() -> None:
    one = text_of_blocks([1, 2, 3], num_words=25, words_per_block=10)
    two = text_of_blocks([1, 2, 4], num_words=25, words_per_block=10)
    assert one.split()[:20] == two.split()[:20]
    assert one.split()[20:] != two.split()[20:]
    assert len(one.split()) == len(two.split()) == 25
    assert len(text_of_blocks([1], num_words=25, words_per_block=10).split()) == 25
