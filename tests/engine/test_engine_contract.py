"""What every engine that generates must do: ours in this process, vLLM in one of its own."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from llguidance import LLMatcher
from tokenizers import Tokenizer

from deepseek.core.errors import ContextLengthExceeded, InvalidRequest
from deepseek.core.requests import EncodeRequest, GenerateRequest, TokenLogprobs
from deepseek.core.wire import Failed, TokenDelta
from deepseek.engine.base import Engine
from deepseek.engine.selection import load_model
from tests.engine.generation import (
    END_AT,
    PROMPT,
    answer,
    ask,
    greedy_reference,
    run,
    tokens_of,
    worker_spec,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

VOCAB = 512
CONTEXT = 512


@pytest.fixture(scope="module", params=["torch", "vllm"])
def loaded(request: pytest.FixtureRequest, contract_dir: Path) -> Iterator[Engine]:
    if request.param == "vllm":
        yield request.getfixturevalue("vllm_engine")
        return
    spec = worker_spec(contract_dir, request.param)
    engine, _ = load_model(spec.models[0], spec, device="cpu")
    yield engine
    engine.close()


@pytest.fixture
def engine(loaded: Engine) -> Iterator[Engine]:
    """An engine that the test must leave as it found it: idle, every block free."""
    yield loaded
    assert not loaded.has_work
    load = loaded.load()
    assert (load.num_running, load.num_waiting, load.kv_tokens_used) == (0, 0, 0)


def mixed_requests(count: int = 10) -> list[GenerateRequest]:
    """Prompts of 1 to 140 tokens, many with a common beginning; answers of 1 to 60."""
    rng = random.Random(5)
    shared = [rng.randrange(VOCAB) for _ in range(40)]
    requests = []
    for number in range(count):
        prompt = shared[: rng.randrange(41)]
        prompt = prompt + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 100))]
        requests.append(ask(number, prompt, rng.randrange(1, 60)))
    return requests


# answers


def test_batched_greedy_answers_equal_transformers(engine: Engine, reference: Any) -> None:
    requests = mixed_requests()
    deltas = run(engine, *requests)
    for request in requests:
        expected = greedy_reference(
            reference, request.prompt_token_ids, request.sampling.max_tokens
        )
        assert tokens_of(deltas[request.id]) == expected, f"request {request.id}"
        assert deltas[request.id][-1].finish_reason == "length"


def test_an_answer_does_not_depend_on_what_runs_beside_it(engine: Engine) -> None:
    requests = mixed_requests(6)
    together = run(engine, *requests)
    for request in requests:
        assert answer(engine, request)[0] == tokens_of(together[request.id])


def test_answers_survive_a_lack_of_memory_unchanged(engine: Engine) -> None:
    requests = [ask(n, [n + 1] * 20, 400) for n in range(6)]
    assert engine.load().kv_tokens_capacity < sum(20 + 400 for _ in requests)
    before = engine.load().num_preemptions
    together = run(engine, *requests)
    assert engine.load().num_preemptions > before
    for request in requests[:2] + requests[-1:]:
        assert answer(engine, request)[0] == tokens_of(together[request.id])


def test_a_prompt_seen_before_is_not_computed_again(engine: Engine) -> None:
    prompt = [random.Random(3).randrange(VOCAB) for _ in range(300)]
    hits = engine.load().prefix_hit_tokens
    cold, warm = (run(engine, ask(n, prompt, 5))[n] for n in (1, 2))
    assert tokens_of(cold) == tokens_of(warm)
    assert [delta.num_cached_tokens for delta in cold] == [0] * 5
    assert warm[0].num_cached_tokens >= 128
    assert [delta.num_cached_tokens for delta in warm[1:]] == [0] * 4
    load = engine.load()
    assert load.prefix_hit_tokens - hits == warm[0].num_cached_tokens
    assert load.kv_tokens_cached >= 128


# ends


def test_generation_ends_at_the_models_own_end(engine: Engine, reference: Any) -> None:
    free = greedy_reference(reference, PROMPT, 30)
    assert answer(engine, ask(1, PROMPT, 30, ignore_eos=False)) == (free[: END_AT + 1], "stop")
    assert answer(engine, ask(2, PROMPT, 30)) == (free, "length")


def test_a_stop_id_ends_the_answer_and_belongs_to_it(engine: Engine, reference: Any) -> None:
    free = greedy_reference(reference, PROMPT, 30)
    stop = free[4]
    expected = free[: free.index(stop) + 1]
    for ignore_eos in (True, False):
        request = ask(1, PROMPT, 30, stop_token_ids=(stop,), ignore_eos=ignore_eos)
        assert answer(engine, request) == (expected, "stop")


def test_no_end_is_drawn_before_min_tokens(engine: Engine, reference: Any) -> None:
    free = greedy_reference(reference, PROMPT, 30)
    request = ask(1, PROMPT, 30, ignore_eos=False, min_tokens=END_AT + 5)
    tokens, _ = answer(engine, request)
    assert tokens[:END_AT] == free[:END_AT]
    assert len(tokens) >= END_AT + 5
    assert free[END_AT] not in tokens[: END_AT + 5]


# sampling


def test_a_seed_gives_the_same_answer_whatever_runs_beside_it(engine: Engine) -> None:
    def sampled(request_id: int, seed: int) -> GenerateRequest:
        return ask(request_id, PROMPT, 30, temperature=1.0, seed=seed)

    alone, _ = answer(engine, sampled(1, 7))
    together = run(engine, *mixed_requests(4), sampled(11, 7), sampled(12, 8), sampled(13, -1))
    assert tokens_of(together[11]) == alone
    assert tokens_of(together[12]) != alone
    assert answer(engine, sampled(2, -1))[0] == tokens_of(together[13])


def test_without_a_seed_answers_differ(engine: Engine) -> None:
    deltas = run(engine, *(ask(n, PROMPT, 20, temperature=1.5) for n in range(4)))
    assert len({tuple(tokens_of(found)) for found in deltas.values()}) > 1


@pytest.mark.parametrize(
    "filters", [{"top_k": 1}, {"top_p": 1e-4}, {"top_p": 0.0}, {"min_p": 1.0}], ids=str
)
def test_a_filter_that_keeps_one_token_is_greedy(engine: Engine, filters: Any) -> None:
    greedy, _ = answer(engine, ask(1, PROMPT, 20))
    assert answer(engine, ask(2, PROMPT, 20, temperature=1.0, seed=3, **filters))[0] == greedy


def test_repetition_is_penalised_as_transformers_does(engine: Engine, reference: Any) -> None:
    expected = greedy_reference(reference, PROMPT, 40, repetition_penalty=1.8)
    assert expected != greedy_reference(reference, PROMPT, 40)
    assert answer(engine, ask(1, PROMPT, 40, repetition_penalty=1.8))[0] == expected


def test_presence_and_frequency_penalties_look_at_the_answer_only(
    engine: Engine, reference: Any
) -> None:
    for name in ("presence_penalty", "frequency_penalty"):
        tokens, _ = answer(engine, ask(1, PROMPT, 40, **{name: 2.0}))
        assert tokens == penalised_reference(reference, PROMPT, 40, **{name: 2.0})


def penalised_reference(
    model: Any,
    prompt: list[int],
    count: int,
    *,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
) -> list[int]:
    """Greedy decoding one token at a time, penalties as the OpenAI API defines them."""
    tokens: list[int] = []
    for _ in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, -1]
        for token in set(tokens):
            logits[token] -= presence_penalty + frequency_penalty * tokens.count(token)
        tokens.append(int(logits.argmax()))
    return tokens


def test_a_bias_decides(engine: Engine) -> None:
    greedy, _ = answer(engine, ask(1, PROMPT, 8))
    forced = next(token for token in range(3, VOCAB) if token not in greedy)
    assert answer(engine, ask(2, PROMPT, 8, logit_bias={forced: 100.0}))[0] == [forced] * 8
    banned, _ = answer(engine, ask(3, PROMPT, 8, logit_bias={greedy[0]: -100.0}))
    assert greedy[0] not in banned


def test_log_probabilities_are_those_of_the_plain_model(engine: Engine, reference: Any) -> None:
    request = ask(1, PROMPT, 6, temperature=1.0, seed=1, num_logprobs=3)
    request = replace(request, sampling=replace(request.sampling, frequency_penalty=1.0))
    deltas = run(engine, request)[1]
    tokens, scores = tokens_of(deltas), scores_of(deltas)
    with torch.inference_mode():
        logits = reference(torch.tensor([PROMPT + tokens])).logits[0, len(PROMPT) - 1 : -1]
    expected = torch.log_softmax(logits, dim=-1)
    for place, (token, found) in enumerate(zip(tokens, scores, strict=True)):
        assert found.chosen == pytest.approx(float(expected[place, token]), abs=1e-3)
        values, ids = expected[place].topk(3)
        assert [token_id for token_id, _ in found.top] == ids.tolist()
        assert [value for _, value in found.top] == pytest.approx(values.tolist(), abs=1e-3)


def test_log_probabilities_come_when_asked_for_only(engine: Engine) -> None:
    deltas = run(engine, ask(1, PROMPT, 4, num_logprobs=0), ask(2, PROMPT, 4))
    assert [found.top for found in scores_of(deltas[1])] == [[]] * 4
    assert [delta.logprobs for delta in deltas[2]] == [None] * 4


def scores_of(deltas: list[TokenDelta]) -> list[TokenLogprobs]:
    return [scores for delta in deltas for scores in delta.logprobs or ()]


# grammars


SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2, 3]}},
    "required": ["ok", "n"],
    "additionalProperties": False,
    "x-guidance": {
        "whitespace_flexible": False,
        "item_separator": ", ",
        "key_separator": ": ",
    },
}


@pytest.mark.parametrize(
    "grammar",
    [
        LLMatcher.grammar_from_json_schema(SCHEMA),
        f"start: %json {json.dumps(SCHEMA)}",
    ],
    ids=["json schema", "lark"],
)
def test_a_grammar_binds_the_answer(engine: Engine, contract_dir: Path, grammar: str) -> None:
    tokenizer = Tokenizer.from_file(str(contract_dir / "tokenizer.json"))
    requests = [
        ask(n, [3, 4], 120, temperature=1.0, seed=n, grammar=grammar, ignore_eos=False)
        for n in range(3)
    ]
    for found in run(engine, *requests, ask(9, PROMPT, 20)).values():
        if found[0].id == 9:  # an unbound neighbour
            continue
        text = tokenizer.decode(tokens_of(found))
        value = json.loads(text)
        assert text == json.dumps(value)
        assert isinstance(value["ok"], bool)
        assert value["n"] in (1, 2, 3)
        assert found[-1].finish_reason == "stop"


# refusals


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (ask(1, [1] * 200, CONTEXT), ContextLengthExceeded, "exceed"),
        (ask(1, [], 5), InvalidRequest, "no tokens"),
        (ask(1, [VOCAB], 5), InvalidRequest, "vocabulary"),
        (ask(1, [-1], 5), InvalidRequest, "vocabulary"),
        (ask(1, [1], 0), InvalidRequest, "max_tokens"),
        (ask(1, [1], 5, stop_token_ids=(VOCAB,)), InvalidRequest, "stop_token_ids"),
        (ask(1, [1], 5, logit_bias={VOCAB: 1.0}), InvalidRequest, "logit_bias"),
        (ask(1, [1], 5, grammar='{"grammars": [{"nonsense": 1}]}'), InvalidRequest, "grammar"),
        (ask(1, [1], 5, grammar="start: missing_rule"), InvalidRequest, "missing_rule"),
        (EncodeRequest(id=1, model="m", sequences=[[1]]), InvalidRequest, "does not encode"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_never_run_is_refused_at_once(
    engine: Engine, request_: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        engine.add(request_)
    assert not engine.has_work
    assert answer(engine, ask(1, PROMPT, 3))[1] == "length"


# aborts and faults


def test_abort_frees_everything_at_once(engine: Engine) -> None:
    for number in range(10):
        engine.add(ask(number, [number + 1] * 30, 200))
    for _ in range(6):
        engine.step()
    load = engine.load()
    assert 0 < load.num_running <= 8
    assert load.num_running + load.num_waiting == 10
    assert load.kv_tokens_used > 0
    for number in range(9):
        engine.abort(number)
    engine.abort(9999)
    rest = engine.load()
    assert rest.num_running + rest.num_waiting == 1
    assert {output.id for _ in range(3) for output in engine.step()} <= {9}
    engine.abort(9)
    assert not engine.has_work


def test_random_aborts_leave_nothing_behind(engine: Engine) -> None:
    rng = random.Random(9)
    for number in range(100):
        engine.add(ask(number, [rng.randrange(50) for _ in range(rng.randrange(1, 60))], 30))
        if rng.random() < 0.5:
            engine.abort(rng.randrange(number + 1))
        engine.step()
    while engine.has_work:
        engine.step()


def test_a_failed_step_loses_only_its_own_requests(engine: Engine) -> None:
    requests = [ask(number, [number + 1] * 30, 12) for number in range(10)]
    for request in requests:
        engine.add(request)
    engine.step()
    failed = engine.fail_running()
    assert failed
    assert set(failed) < {request.id for request in requests}
    tokens: dict[int, list[int]] = {}
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output, TokenDelta)
            tokens.setdefault(output.id, []).extend(output.token_ids)
    assert set(tokens) == {request.id for request in requests} - set(failed)
    for request in requests:
        expected, _ = answer(engine, replace(request, id=100 + request.id))
        assert tokens.get(request.id, expected) == expected


def test_a_request_gets_no_event_after_its_end(engine: Engine) -> None:
    engine.add(ask(1, PROMPT, 2))
    engine.add(ask(2, PROMPT, 20))
    seen: list[int] = []
    while engine.has_work:
        for output in engine.step():
            assert not isinstance(output, Failed)
            seen.append(output.id)
    assert seen.count(1) == 2
    assert seen.count(2) == 20
