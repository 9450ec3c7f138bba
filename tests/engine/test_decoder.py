"""The decoder engine against transformers' own generation, and under pressure."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from llguidance import LLMatcher
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from deepseek.core.errors import ContextLengthExceeded, InvalidGrammar, InvalidRequest
from deepseek.core.requests import EncodeRequest, GenerateRequest, SamplingParams
from deepseek.core.wire import TokenDelta
from deepseek.engine.batch_scheduler import Part
from deepseek.engine.runner import CpuRunner, FinishedStep, PendingStep
from tests.engine.families import greedy, make_engine, run_all

FAMILIES = [
    "tiny_llama_dir",
    "tiny_mistral_dir",
    "tiny_qwen2_dir",
    "tiny_qwen3_dir",
    "tiny_gpt2_dir",
]


def vocab_size(path: Path) -> int:
    size = json.loads((path / "config.json").read_text())["vocab_size"]
    assert isinstance(size, int)
    return size


def mixed_requests(vocab: int, count: int = 16) -> list[GenerateRequest]:
    """Prompts of 1 to 140 tokens, many with a common beginning; answers of 1 to 60."""
    rng = random.Random(5)
    shared = [rng.randrange(vocab) for _ in range(40)]
    requests = []
    for number in range(count):
        prompt = shared[: rng.randrange(41)]
        prompt = prompt + [rng.randrange(vocab) for _ in range(rng.randrange(1, 100))]
        requests.append(greedy(number, prompt, rng.randrange(1, 60)))
    return requests


def reference(path: Path, request: GenerateRequest) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    prompt = torch.tensor([request.prompt_token_ids])
    count = request.sampling.max_tokens
    with torch.inference_mode():
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            min_new_tokens=count,
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    tokens: list[int] = output[0, prompt.shape[1] :].tolist()
    return tokens


@pytest.mark.timeout(60)
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_greedy_answers_equal_transformers(
    family: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(family)
    requests = mixed_requests(vocab_size(path))
    answers = run_all(make_engine(path), requests)
    for item in requests:
        assert answers[item.id] == reference(path, item), f"request {item.id}"


def test_answers_survive_preemption_unchanged(tiny_llama_dir: Path) -> None:
    requests = [greedy(n, [n + 1] * 20, 100) for n in range(6)]
    roomy = run_all(make_engine(tiny_llama_dir), requests)
    engine = make_engine(tiny_llama_dir, capacity_tokens=260)
    assert run_all(engine, requests) == roomy
    assert engine.load().num_preemptions > 0
    assert engine.load().kv_tokens_used == 0


def test_a_long_prompt_does_not_stop_a_running_stream(tiny_llama_dir: Path) -> None:
    engine = make_engine(tiny_llama_dir, max_step_tokens=16)
    engine.add(greedy(1, [1, 2, 3], 40))
    engine.step()
    engine.add(greedy(2, list(range(1, 151)), 4))
    for _ in range(9):
        outputs = engine.step()
        assert [o.id for o in outputs if isinstance(o, TokenDelta)] == [1]


def test_a_burst_on_one_prompt_computes_it_once(tiny_llama_dir: Path) -> None:
    engine = make_engine(tiny_llama_dir, max_step_tokens=256)
    prompt = [7] * 150
    answers = run_all(engine, [greedy(n, prompt, 5) for n in range(6)])
    assert len({tuple(tokens) for tokens in answers.values()}) == 1
    assert engine.load().prefix_hit_tokens == 5 * 144  # full blocks of 16


def test_abort_frees_slot_and_memory_at_once(tiny_llama_dir: Path) -> None:
    engine = make_engine(tiny_llama_dir, max_running=2)
    for number in range(4):
        engine.add(greedy(number, [number + 1] * 30, 200))
    engine.step()
    engine.step()
    assert engine.load().num_running == 2
    for number in (0, 1, 3):
        engine.abort(number)
    assert engine.load().num_running == 0
    outputs = engine.step() + engine.step()
    assert {o.id for o in outputs} <= {2}
    engine.abort(2)
    assert not engine.has_work
    assert engine.load().kv_tokens_used == 0


def test_random_aborts_leave_nothing_behind(tiny_llama_dir: Path) -> None:
    engine = make_engine(tiny_llama_dir, capacity_tokens=400)
    rng = random.Random(9)
    for number in range(150):
        engine.add(greedy(number, [rng.randrange(50) for _ in range(rng.randrange(1, 60))], 30))
        if rng.random() < 0.5:
            engine.abort(rng.randrange(number + 1))
        engine.step()
    while engine.has_work:
        engine.step()
    load = engine.load()
    assert (load.num_running, load.num_waiting, load.kv_tokens_used) == (0, 0, 0)
    assert load.kv_tokens_cached <= load.kv_tokens_capacity


def test_generation_ends_at_the_models_own_end_token(tiny_llama_dir: Path) -> None:
    free = run_all(make_engine(tiny_llama_dir), [greedy(1, [5, 6, 7], 30)])[1]
    end = free[10]
    engine = make_engine(tiny_llama_dir, eos_token_ids=(end,))
    assert run_all(engine, [greedy(1, [5, 6, 7], 30)])[1] == free[: free.index(end) + 1]


def test_a_grammar_binds_the_answer(tiny_llama_dir: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_llama_dir / "tokenizer.json"))
    end = tokenizer.token_to_id("<|im_end|>")
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2, 3]}},
        "required": ["ok", "n"],
        "additionalProperties": False,
    }
    grammar = LLMatcher.grammar_from_json_schema(schema)
    engine = make_engine(tiny_llama_dir, eos_token_ids=(end,))
    sampling = SamplingParams(max_tokens=120, temperature=1.0, seed=4, grammar=grammar)
    answers = run_all(
        engine,
        [
            GenerateRequest(id=n, model="m", prompt_token_ids=[3, 4], sampling=sampling)
            for n in range(3)
        ],
    )
    for tokens in answers.values():
        value = json.loads(tokenizer.decode([t for t in tokens if t != end]))
        assert isinstance(value["ok"], bool)
        assert value["n"] in (1, 2, 3)


def test_what_can_never_run_is_refused_at_once(tiny_llama_dir: Path) -> None:
    engine = make_engine(tiny_llama_dir)
    vocab = vocab_size(tiny_llama_dir)
    with pytest.raises(ContextLengthExceeded, match="256"):
        engine.add(greedy(1, [1] * 200, 100))
    with pytest.raises(InvalidRequest, match="no tokens"):
        engine.add(greedy(1, [], 5))
    with pytest.raises(InvalidRequest, match="vocabulary"):
        engine.add(greedy(1, [vocab], 5))
    with pytest.raises(InvalidRequest, match="does not encode"):
        engine.add(EncodeRequest(id=1, model="m", sequences=[[1]]))
    with pytest.raises(InvalidGrammar):
        engine.add(
            GenerateRequest(
                id=1,
                model="m",
                prompt_token_ids=[1],
                sampling=SamplingParams(max_tokens=5, grammar='{"grammars": [{"nonsense": 1}]}'),
            )
        )
    assert not engine.has_work


def test_a_failed_step_loses_only_its_own_requests(tiny_llama_dir: Path) -> None:
    engine = make_engine(tiny_llama_dir, max_running=2)
    for number in range(3):
        engine.add(greedy(number, [number + 1] * 10, 5))
    engine.step()
    assert sorted(engine.fail_running()) == [0, 1]
    answers: list[int] = []
    while engine.has_work:
        for output in engine.step():
            assert output.id == 2
            assert isinstance(output, TokenDelta)
            answers.extend(output.token_ids)
    assert len(answers) == 5


class EagerlyScheduled(CpuRunner):
    """Runs like a GPU's runner: the engine schedules the next step before it reads this one."""

    is_asynchronous = True


@pytest.mark.timeout(60)
def test_steps_that_run_ahead_of_their_results_change_no_answer(tiny_llama_dir: Path) -> None:
    requests = mixed_requests(vocab_size(tiny_llama_dir), 10)
    plain = run_all(make_engine(tiny_llama_dir), requests)
    end = plain[3][len(plain[3]) // 2]
    requests += [
        GenerateRequest(
            id=100 + n,
            model="m",
            prompt_token_ids=[n + 1, 2, 3],
            sampling=SamplingParams(max_tokens=20, seed=n, presence_penalty=0.5 * (n % 2)),
        )
        for n in range(4)
    ]
    expected = run_all(make_engine(tiny_llama_dir, eos_token_ids=(end,)), requests)
    for capacity_tokens in (4000, 260):
        engine = make_engine(
            tiny_llama_dir,
            eos_token_ids=(end,),
            capacity_tokens=capacity_tokens,
            runner_class=EagerlyScheduled,
        )
        assert run_all(engine, requests) == expected
        assert engine.load().kv_tokens_used == 0


class ShortOfMemory(CpuRunner):
    """A device on which a step of more than 20 rows finds no memory."""

    def run(self, parts: Sequence[Part], *, previous: PendingStep | None) -> FinishedStep:
        if sum(part.num_rows for part in parts) > 20:
            raise torch.OutOfMemoryError("out of memory")
        return super().run(parts, previous=previous)


def test_a_step_that_finds_no_memory_is_made_smaller_and_nothing_is_lost(
    tiny_llama_dir: Path,
) -> None:
    requests = [greedy(n, [n + 1] * 30, 10) for n in range(6)]
    expected = run_all(make_engine(tiny_llama_dir), requests)
    engine = make_engine(tiny_llama_dir, runner_class=ShortOfMemory)
    assert run_all(engine, requests) == expected
    assert engine.load().kv_tokens_used == 0
