"""`/v1/completions` through the official client."""

import json
from typing import Any

import pytest

from tests.gateway.conftest import Running

pytestmark = pytest.mark.server


async def test_the_client_gets_a_whole_answer(running: Running) -> None:
    answer = await running.openai.completions.create(model="echo", prompt="hello", max_tokens=4)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("hell", "length")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 4)


async def test_sixteen_tokens_are_the_default(running: Running) -> None:
    answer = await running.openai.completions.create(model="echo", prompt="a" * 40)
    assert answer.choices[0].text == "a" * 16


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["ab"]),
        (["ab", "cd"], ["ab", "cd"]),
        ([97, 98], ["ab"]),
        ([[97, 98], [99]], ["ab", "c"]),
    ],
)
async def test_prompts_are_texts_or_token_ids(
    running: Running, prompt: Any, texts: list[str]
) -> None:
    answer = await running.openai.completions.create(model="echo", prompt=prompt, n=2)
    assert [choice.index for choice in answer.choices] == list(range(2 * len(texts)))
    assert [choice.text for choice in answer.choices] == [t for t in texts for _ in range(2)]


async def test_the_client_streams(running: Running) -> None:
    stream = await running.openai.completions.create(
        model="echo",
        prompt=["ab", "cd"],
        stream=True,
        stream_options={"include_usage": True},
    )
    texts, reasons, usages = ["", ""], [], []
    async for chunk in stream:
        usages.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons.append(choice.finish_reason)
    assert texts == ["ab", "cd"]
    assert reasons.count("stop") == 2
    assert set(usages[:-1]) == {None}
    assert usages[-1] is not None
    assert usages[-1].total_tokens == 8


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_puts_the_prompt_before_the_answer(running: Running, stream: bool) -> None:
    response = await running.post(
        "/v1/completions", model="echo", prompt=[[97, 98], [99]], echo=True, n=2, stream=stream
    )
    texts = dict.fromkeys(range(4), "")
    if stream:
        events = [part.removeprefix("data: ") for part in response.text.strip().split("\n\n")]
        assert events.pop() == "[DONE]"
        choices = [choice for event in events for choice in json.loads(event)["choices"]]
    else:
        choices = response.json()["choices"]
    for choice in choices:
        texts[choice["index"]] += choice["text"]
    assert texts == {0: "abab", 1: "abab", 2: "cc", 3: "cc"}


async def test_logprobs_have_offsets_and_alternatives(running: Running) -> None:
    answer = await running.openai.completions.create(model="echo", prompt="aé", logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "é"]
    assert logprobs.text_offset == [0, 1]
    assert logprobs.token_logprobs == [-0.5, -0.5]
    assert logprobs.top_logprobs == [{"a": -1.0, "b": -2.0}] * 2
    stream = await running.openai.completions.create(
        model="echo", prompt="aé", logprobs=0, stream=True
    )
    found = [c.choices[0].logprobs async for c in stream if c.choices[0].text]
    assert [item.text_offset for item in found if item] == [[0], [1]]
    assert [item.top_logprobs for item in found if item] == [None, None]


async def test_a_deployment_sees_the_same_options_as_in_a_chat(running: Running) -> None:
    await running.openai.completions.create(
        model="echo", prompt="a", temperature=0, stop="x", seed=3, extra_body={"top_k": -1}
    )
    (options,) = running.deployments.generators["echo"].asked
    assert options.sampling.temperature == 0
    assert options.sampling.top_k == 0
    assert options.sampling.seed == 3
    assert options.stop == ("x",)
