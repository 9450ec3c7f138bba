"""What the estimator knows of a device after how many steps."""

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from deepseek.scheduling.batching.base import StepShape, prompt_pairs
from deepseek.scheduling.batching.step_time import MIN_CHUNK_TOKENS, StepTimeEstimator
from tests.scheduling.batching.queue import step_s


def shape_of(draws: random.Random) -> StepShape:
    decoding = draws.randint(1, 32)
    prefill = draws.choice([0, 0, 0, 48, 192])
    return StepShape(
        num_prefill_tokens=prefill,
        num_decoding=decoding,
        num_context_tokens=decoding * draws.randint(20, 400) + prefill,
        num_sequences=decoding + 1,
        num_prefill_pairs=prompt_pairs(prefill, start=draws.choice([0, 0, 192, 700])),
    )


def depth_of(shape: StepShape) -> float:
    return shape.num_prefill_pairs / max(1, shape.num_prefill_tokens)


def errors(
    estimator: StepTimeEstimator, draws: random.Random, *, num_steps: int, slower: float = 1.0
) -> list[float]:
    """Observe noisy steps and return the relative error of each prediction before it."""
    found = []
    for _ in range(num_steps):
        shape = shape_of(draws)
        seconds = slower * step_s(shape) * draws.lognormvariate(0, 0.05)
        predicted_s = estimator.predict(
            prefill=shape.num_prefill_tokens,
            decoding=shape.num_decoding,
            context=shape.num_context_tokens,
            depth=depth_of(shape),
        )
        found.append(abs(predicted_s - seconds) / seconds)
        estimator.observe(shape, seconds)
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_it_is_within_a_tenth_after_200_steps_and_50_steps_after_a_slow_down() -> None:
    draws = random.Random(7)
    estimator = StepTimeEstimator()
    errors(estimator, draws, num_steps=200)
    assert mean(errors(estimator, draws, num_steps=200)) <= 0.1
    errors(estimator, draws, num_steps=50, slower=1.6)
    assert mean(errors(estimator, draws, num_steps=100, slower=1.6)) <= 0.1


def test_it_is_as_good_after_days_of_steps() -> None:
    draws = random.Random(11)
    estimator = StepTimeEstimator()
    errors(estimator, draws, num_steps=30_000)
    assert mean(errors(estimator, draws, num_steps=200)) <= 0.06


def test_one_stall_is_no_news_about_batches() -> None:
    draws = random.Random(8)
    estimator = StepTimeEstimator()
    errors(estimator, draws, num_steps=300)
    estimator.observe(shape_of(draws), 3.0)
    errors(estimator, draws, num_steps=30)
    assert mean(errors(estimator, draws, num_steps=100)) <= 0.1


def test_nearly_all_steps_stay_within_the_safe_prediction() -> None:
    draws = random.Random(9)
    estimator = StepTimeEstimator()
    errors(estimator, draws, num_steps=400)
    within = 0
    for _ in range(400):
        shape = shape_of(draws)
        seconds = step_s(shape) * draws.lognormvariate(0, 0.05)
        safe_s = estimator.predict_safe(
            prefill=shape.num_prefill_tokens,
            decoding=shape.num_decoding,
            context=shape.num_context_tokens,
            depth=depth_of(shape),
        )
        within += seconds <= safe_s
        estimator.observe(shape, seconds)
    assert within >= 0.9 * 400


def test_the_largest_prefill_fits_its_limit_and_is_never_less_than_a_small_chunk() -> None:
    draws = random.Random(10)
    estimator = StepTimeEstimator()
    assert estimator.largest_prefill(0.001, decoding=4, context=0, most=192) == 192
    errors(estimator, draws, num_steps=300)
    size = estimator.largest_prefill(0.04, decoding=4, context=400, most=192)
    assert MIN_CHUNK_TOKENS < size < 192
    assert estimator.predict(prefill=size, decoding=4, context=400 + size) <= 0.041
    deep = estimator.largest_prefill(0.04, decoding=4, context=400, most=192, depth=600)
    assert MIN_CHUNK_TOKENS < deep < size, "attention to a long prompt takes its time"
    deep_s = estimator.predict(prefill=deep, decoding=4, context=400 + deep, depth=600)
    assert 0.037 <= deep_s <= 0.041
    assert estimator.largest_prefill(0.0, decoding=4, context=0, most=192) == MIN_CHUNK_TOKENS


@given(
    st.lists(
        st.tuples(
            st.integers(0, 100_000),
            st.integers(0, 1024),
            st.integers(0, 10**8),
            st.integers(0, 10**10),
            st.floats(0.0, 100.0),
        ),
        max_size=60,
    )
)
def test_predictions_are_finite_and_never_negative(
    seen: list[tuple[int, int, int, int, float]],
) -> None:
    estimator = StepTimeEstimator()
    for prefill, decoding, context, pairs, seconds in seen:
        shape = StepShape(
            num_prefill_tokens=prefill,
            num_decoding=decoding,
            num_context_tokens=context,
            num_sequences=1,
            num_prefill_pairs=pairs,
        )
        estimator.observe(shape, seconds)
        safe_s = estimator.predict_safe(
            prefill=prefill, decoding=decoding, context=context, depth=depth_of(shape)
        )
        assert math.isfinite(safe_s)
        assert safe_s >= 0.0
