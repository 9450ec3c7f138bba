"""Drawing tokens: filters, penalties, seeds, log-probabilities."""

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch

from deepseek.core.requests import GenerateRequest, SamplingParams, TokenLogprobs
from deepseek.engine.batch_scheduler import Part
from deepseek.engine.sampling import describe, draw, history
from deepseek.engine.sequence import Sequence

PROBS = [0.5, 0.25, 0.15, 0.07, 0.03]


def make_sequence(prompt: list[int] | None = None, **params: Any) -> Sequence:
    sampling = SamplingParams(max_tokens=10, **params)
    prompt = prompt or [0]
    request = GenerateRequest(id=1, model="m", prompt_token_ids=prompt, sampling=sampling)
    return Sequence(
        request=request,
        tokens=list(prompt),
        num_prompt=len(prompt),
        generator=random.Random(sampling.seed),
        history=history(sampling, prompt, len(PROBS)),
    )


def logits(probs: list[float] = PROBS) -> torch.Tensor:
    return torch.tensor([probs]).log()


def sample(
    logits: torch.Tensor, sequences: list[Sequence], *, eos_token_ids: list[int]
) -> tuple[list[int], list[TokenLogprobs | None]]:
    """Draw a token for each sequence and append it, as a step does."""
    parts = [Part(sequence, len(sequence.tokens) - 1, 1, 1) for sequence in sequences]
    for sequence in sequences:
        sequence.num_in_flight = 1
    drawn = draw(logits, parts, eos_token_ids=eos_token_ids)
    tokens: list[int] = drawn.tokens.tolist()
    scores: list[TokenLogprobs | None] = []
    for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True)):
        sequence.num_in_flight = 0
        sequence.tokens.append(token)
        num_top = sequence.sampling.num_logprobs
        scores.append(None if num_top is None else describe(drawn.logprobs[row], token, num_top))
    return tokens, scores


def draws(count: int = 4000, **params: Any) -> dict[int, float]:
    sequence = make_sequence(seed=7, **params)
    tokens = [sample(logits(), [sequence], eos_token_ids=[])[0][0] for _ in range(count)]
    return {token: n / count for token, n in Counter(tokens).items()}


def test_zero_temperature_takes_the_most_probable() -> None:
    assert draws(10, temperature=0.0) == {0: 1.0}


def test_plain_sampling_follows_the_distribution() -> None:
    shares = draws()
    for token, expected in enumerate(PROBS):
        assert shares[token] == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.6}, {0, 1}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.01}, {0}),
        ({"min_p": 0.29}, {0, 1, 2}),
        ({"min_p": 1.0}, {0}),
        ({"top_k": 3, "top_p": 0.7}, {0, 1}),
    ],
)
def test_filters_keep_exactly_the_tokens_they_promise(
    params: dict[str, Any], kept: set[int]
) -> None:
    shares = draws(**params)
    assert set(shares) == kept
    total = sum(PROBS[token] for token in kept)
    for token, share in shares.items():
        assert share == pytest.approx(PROBS[token] / total, abs=0.03)


def test_a_nucleus_wider_than_the_head_falls_back_to_the_whole_vocabulary() -> None:
    vocab = 2000
    sequence = make_sequence(seed=3, top_p=0.9)
    flat = torch.zeros(1, vocab)
    tokens = {sample(flat.clone(), [sequence], eos_token_ids=[])[0][0] for _ in range(3000)}
    assert 1200 < len(tokens) < 1801


def test_a_higher_temperature_flattens() -> None:
    assert draws(temperature=5.0)[0] < draws(temperature=1.0)[0] < draws(temperature=0.3)[0]


def test_the_same_seed_gives_the_same_tokens_whatever_stands_beside() -> None:
    alone, crowded = make_sequence(seed=11), make_sequence(seed=11)
    others = [make_sequence(temperature=0.0), make_sequence(seed=99)]
    first = [sample(logits(), [alone], eos_token_ids=[])[0][0] for _ in range(50)]
    second = [
        sample(logits().repeat(3, 1), [others[0], crowded, others[1]], eos_token_ids=[])[0][1]
        for _ in range(50)
    ]
    assert first == second
    assert len(set(first)) > 1


def test_a_presence_penalty_moves_on_after_one_use() -> None:
    sequence = make_sequence(temperature=0.0, presence_penalty=2.0)
    tokens = []
    for _ in range(3):
        token = sample(logits(), [sequence], eos_token_ids=[])[0][0]
        assert sequence.history is not None
        sequence.history.add(token)
        tokens.append(token)
    assert tokens == [0, 1, 2]


def test_a_frequency_penalty_grows_with_each_use() -> None:
    sequence = make_sequence(temperature=0.0, frequency_penalty=0.4)
    tokens = []
    for _ in range(4):
        token = sample(logits(), [sequence], eos_token_ids=[])[0][0]
        assert sequence.history is not None
        sequence.history.add(token)
        tokens.append(token)
    # log(0.5 / 0.25) = 0.69: two uses of token 0 pass it.
    assert tokens == [0, 0, 1, 0]


def test_a_repetition_penalty_counts_the_prompt_too() -> None:
    sequence = make_sequence(prompt=[0], temperature=0.0, repetition_penalty=3.0)
    assert sample(logits(), [sequence], eos_token_ids=[])[0] == [1]


def test_a_logit_bias_can_force_and_forbid() -> None:
    assert draws(20, logit_bias={4: 100.0}) == {4: 1.0}
    assert 0 not in draws(200, logit_bias={0: -100.0})


def test_no_end_is_drawn_before_min_tokens() -> None:
    sequence = make_sequence(temperature=0.0, min_tokens=1)
    assert sample(logits(), [sequence], eos_token_ids=[0])[0] == [1]
    assert sample(logits(), [sequence], eos_token_ids=[0])[0] == [0]


def test_logprobs_are_the_models_own_before_temperature_and_filters() -> None:
    sequence = make_sequence(temperature=0.0, num_logprobs=2, logit_bias={4: 100.0})
    tokens, scores = sample(logits(), [sequence], eos_token_ids=[])
    assert tokens == [4]
    assert scores[0] is not None
    assert scores[0].chosen == pytest.approx(math.log(0.03), abs=1e-5)
    assert [token for token, _ in scores[0].top] == [0, 1]
    assert scores[0].top[0][1] == pytest.approx(math.log(0.5), abs=1e-5)


def test_a_place_in_the_answer_has_one_number_however_often_it_is_drawn() -> None:
    """A rejected guess and a second computation after a preemption change nothing."""
    sequence, twin = make_sequence(seed=5), make_sequence(seed=5)
    numbers = [sequence.uniform(place) for place in (3, 0, 3, 1, 2, 0)]
    ordered = [twin.uniform(place) for place in range(4)]
    assert numbers == [ordered[place] for place in (3, 0, 3, 1, 2, 0)]
