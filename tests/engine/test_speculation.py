"""Prompt lookup: what is guessed, when it pays, and that answers stay the same."""

from pathlib import Path

import pytest

from deepseek.core.requests import GenerateRequest, SamplingParams
from deepseek.engine.drafts import Lookup
from deepseek.engine.prompt_lookup import PromptLookup
from deepseek.engine.sequence import Sequence
from deepseek.engine.speculation import StepCost
from tests.engine.families import Bold, greedy, make_engine, run_all


def make_sequence(prompt: list[int], *, max_tokens: int = 100) -> Sequence:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    request = GenerateRequest(id=1, model="m", prompt_token_ids=prompt, sampling=sampling)
    return Sequence(request=request, tokens=list(prompt), num_prompt=len(prompt))


def test_the_tokens_that_followed_the_last_ngram_are_guessed() -> None:
    lookup = Lookup(3)
    tokens = [1, 2, 3, 4, 5, 9, 1, 2, 3]
    assert lookup.continuation(tokens, 2) == (4, 5)
    assert lookup.continuation(tokens, 8) == (4, 5, 9, 1, 2, 3, 4, 5)  # and on, as a loop
    assert lookup.continuation([*tokens, 7], 4) == ()


def test_the_most_recent_place_counts() -> None:
    assert Lookup(2).continuation([1, 2, 8, 1, 2, 9, 1, 2], 1) == (9,)


def test_the_cost_of_a_step_is_learnt_from_steps_of_different_sizes() -> None:
    cost = StepCost()
    for rows in (1, 2, 4, 8, 3, 5):
        cost.observe(rows, 10.0 + 0.5 * rows)
    fixed, row = cost.coefficients()
    assert fixed == pytest.approx(10.0)
    assert row == pytest.approx(0.5)


def test_drafts_stop_when_they_are_wrong_and_are_tried_again_after_a_pause() -> None:
    speculation = PromptLookup(max_draft=4)
    sequence = make_sequence([1, 2, 3, 4] * 20, max_tokens=5000)
    for rows in (1, 2, 4):
        speculation.observe_step(num_rows=rows, num_decoding=1, seconds=0.01 + 0.005 * rows)
    drafted = []
    for _ in range(400):
        draft = speculation.draft(sequence)
        drafted.append(len(draft))
        if draft:
            speculation.observe(sequence, len(draft), 0)
        sequence.tokens.extend([1, 2, 3, 4][len(sequence.tokens) % 4 :][:1])
    assert drafted[0] > 0
    assert sum(drafted[-200:]) <= 4
    assert sum(map(bool, drafted[40:])) >= 2


def test_right_drafts_grow_to_the_longest() -> None:
    speculation = PromptLookup(max_draft=6)
    sequence = make_sequence([1, 2, 3, 4] * 20, max_tokens=5000)
    for rows in (1, 2, 4):
        speculation.observe_step(num_rows=rows, num_decoding=1, seconds=0.01 + 0.001 * rows)
    for _ in range(20):
        draft = speculation.draft(sequence)
        speculation.observe(sequence, len(draft), len(draft))
    assert len(draft) == 6


def test_a_draft_never_passes_the_end_of_the_answer() -> None:
    speculation = PromptLookup(max_draft=8)
    sequence = make_sequence([1, 2, 3, 4] * 20, max_tokens=3)
    assert len(speculation.draft(sequence)) <= 2


@pytest.mark.timeout(60)
@pytest.mark.parametrize("temperature", [0.0, 0.2])
def test_answers_are_the_same_with_and_without(tiny_llama_dir: Path, temperature: float) -> None:
    def requests() -> list[GenerateRequest]:
        sampling = SamplingParams(max_tokens=60, temperature=temperature, seed=3, top_p=0.9)
        prompts = [[5, 6, 7, 8] * 10, [9, 10] * 15, [3]]
        return [
            GenerateRequest(id=n, model="m", prompt_token_ids=prompt, sampling=sampling)
            for n, prompt in enumerate(prompts)
        ]

    plain = run_all(make_engine(tiny_llama_dir), requests())
    speculation = Bold(ngram=1)
    assert run_all(make_engine(tiny_llama_dir, speculation=speculation), requests()) == plain
    assert 0 < speculation.num_accepted < speculation.num_drafted


def test_an_answer_ends_at_its_end_token_inside_an_accepted_draft(tiny_llama_dir: Path) -> None:
    request = greedy(1, [5, 6, 7, 8] * 10, 60)
    free = run_all(make_engine(tiny_llama_dir), [request])[1]
    end = free[30]
    engine = make_engine(
        tiny_llama_dir, eos_token_ids=(end,), speculation=Bold(ngram=1, max_draft=12)
    )
    assert run_all(engine, [request])[1] == free[: free.index(end) + 1]
    assert engine.load().kv_tokens_used == 0
