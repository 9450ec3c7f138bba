"""What is particular to vLLM behind our protocol."""

from dataclasses import replace
from typing import Any

import pytest

from deepseek.core.errors import UnsupportedParameter
from tests.engine.generation import answer, ask, greedy_reference
from tests.engine.hosted import HostedEngine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_a_step_that_breaks_leaves_no_wrong_prefix_behind(
    vllm_engine: HostedEngine, reference: Any
) -> None:
    engine, prompt = vllm_engine, list(range(10, 210))
    expected = greedy_reference(reference, prompt, 10)
    engine.add(ask(1, prompt, 10))
    engine.step()  # 64 tokens
    engine.break_next_step()  # which would have completed the first block, of 128
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.step()
    assert engine.fail_running() == [1]
    assert not engine.has_work
    assert engine.load().kv_tokens_used == 0
    assert answer(engine, ask(2, prompt, 10))[0] == expected
    assert answer(engine, ask(3, prompt, 10))[0] == expected


def test_requests_that_a_broken_step_did_not_hold_are_answered(
    vllm_engine: HostedEngine, reference: Any
) -> None:
    engine = vllm_engine
    requests = [ask(number, [number + 1] * 30, 12) for number in range(10)]
    for request in requests:
        engine.add(request)
    engine.step()
    engine.break_next_step()
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.step()
    failed = set(engine.fail_running())
    left = [request for request in requests if request.id not in failed]
    assert failed
    assert left
    tokens: dict[int, list[int]] = {}
    while engine.has_work:
        for output in engine.step():
            tokens.setdefault(output.id, []).extend(output.token_ids)
    assert tokens == {
        request.id: greedy_reference(reference, request.prompt_token_ids, 12) for request in left
    }


def test_what_it_found_is_reported(vllm_engine: HostedEngine) -> None:
    info = vllm_engine.info
    assert (info.max_model_len, info.vocab_size, info.dtype) == (512, 512, "float32")
    assert info.weights_bytes > 0
    assert info.load_s > 0


def test_what_it_cannot_do_exactly_is_refused(vllm_engine: HostedEngine) -> None:
    with pytest.raises(UnsupportedParameter) as adapter:
        vllm_engine.add(replace(ask(1, [1], 5), adapter="a"))
    assert adapter.value.param == "adapter"
    with pytest.raises(UnsupportedParameter) as grammar:
        vllm_engine.add(ask(1, [1], 5, grammar='root ::= "a"'))
    assert grammar.value.param == "response_format"
    assert not vllm_engine.has_work
