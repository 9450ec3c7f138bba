"""`/v1/chat/completions` through the official client, and its bytes."""

import json
from typing import Any

import httpx
import openai
import pytest

from deepseek.core.errors import Overloaded
from tests.gateway.conftest import Running

pytestmark = pytest.mark.server


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def events(response: httpx.Response) -> list[Any]:
    """Return a stream's events as JSON; the last one, [DONE], as text."""
    lines = [part for part in response.text.split("\n\n") if part]
    assert all(line.startswith("data: ") for line in lines)
    found = [line.removeprefix("data: ") for line in lines]
    return [item if item == "[DONE]" else json.loads(item) for item in found]


async def test_the_client_gets_a_whole_answer_with_usage(running: Running) -> None:
    answer = await running.openai.chat.completions.create(model="echo", messages=user("héllo ✓"))
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == "héllo ✓"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is None
    assert answer.choices[0].message.tool_calls is None
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 7)
    assert answer.usage.total_tokens == 14
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


async def test_the_client_streams_text_as_it_grows(running: Running) -> None:
    stream = await running.openai.chat.completions.create(
        model="echo", messages=user('a "b"\n'), stream=True
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == 'a "b"\n'
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert [c.choices[0].finish_reason for c in chunks] == [None] * 7 + ["stop"]
    assert len({c.id for c in chunks}) == 1
    assert {c.object for c in chunks} == {"chat.completion.chunk"}


async def test_a_stream_has_the_bytes_that_openai_sends(running: Running) -> None:
    response = await running.post(
        "/v1/chat/completions",
        model="echo",
        messages=user("ab"),
        stream=True,
        stream_options={"include_usage": True},
    )
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    found = events(response)
    assert found[-1] == "[DONE]"
    role, first, second, last, usage = found[:-1]
    head = {key: role[key] for key in ("id", "object", "created", "model", "system_fingerprint")}

    def chunk(delta: Any, reason: str | None = None) -> Any:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**head, "choices": [choice], "usage": None}

    assert role == chunk({"role": "assistant", "content": "", "refusal": None})
    assert first == chunk({"content": "a"})
    assert second == chunk({"content": "b"})
    assert last == chunk({}, "stop")
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] == 2
    assert usage["usage"]["completion_tokens"] == 2


async def test_without_include_usage_no_event_has_a_usage(running: Running) -> None:
    response = await running.post(
        "/v1/chat/completions", model="echo", messages=user("ab"), stream=True
    )
    found = events(response)
    assert found[-1] == "[DONE]"
    assert all("usage" not in event for event in found[:-1])


async def test_n_answers_have_their_own_index(running: Running) -> None:
    answer = await running.openai.chat.completions.create(model="echo", messages=user("ab"), n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {"ab"}
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 6)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    stream = await running.openai.chat.completions.create(
        model="echo", messages=user("ab"), n=2, stream=True
    )
    texts = {0: "", 1: ""}
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "ab", 1: "ab"}


async def test_every_sampling_parameter_reaches_the_deployment(running: Running) -> None:
    await running.openai.chat.completions.create(
        model="echo",
        messages=user("a"),
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=-0.2,
        seed=-5,
        stop=["x", "yy"],
        logit_bias={"17": -100},
        n=2,
        extra_body={
            "top_k": 40,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "stop_token_ids": [3, 4],
            "ignore_eos": True,
            "min_tokens": 2,
            "include_stop_str_in_output": True,
            "chat_template_kwargs": {"thinking": False},
        },
    )
    generator = running.deployments.generators["echo"]
    (options,) = generator.asked
    sampling = options.sampling
    assert (options.n, options.stop, options.include_stop) == (2, ("x", "yy"), True)
    assert (sampling.max_tokens, sampling.min_tokens, sampling.ignore_eos) == (7, 2, True)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 40)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.seed) == (0.05, 1.1, -5)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.1, -0.2)
    assert sampling.logit_bias == {17: -100.0}
    assert sampling.stop_token_ids == (3, 4)
    assert sampling.num_logprobs is None
    assert generator.rendered[0]["kwargs"] == {"thinking": False}


async def test_defaults_are_those_of_the_openai_api(running: Running) -> None:
    await running.openai.chat.completions.create(model="echo", messages=user("abc"))
    (options,) = running.deployments.generators["echo"].asked
    assert options.sampling.temperature == 1.0
    assert options.sampling.top_p == 1.0
    assert options.sampling.max_tokens == 100_000 - 3
    assert (options.n, options.stop, options.sampling.seed) == (1, (), None)


async def test_a_deployments_default_max_tokens_is_capped_by_the_context(running: Running) -> None:
    generator = running.deployments.generators["small"]
    for text in ("abc", "a" * 30):
        await running.openai.chat.completions.create(model="small", messages=user(text))
    assert [options.sampling.max_tokens for options in generator.asked] == [8, 2]


async def test_an_answer_cut_by_max_tokens_says_so(running: Running) -> None:
    answer = await running.openai.chat.completions.create(
        model="echo", messages=user("abcdef"), max_tokens=3
    )
    assert answer.choices[0].message.content == "abc"
    assert answer.choices[0].finish_reason == "length"


async def test_logprobs_come_with_their_bytes_and_alternatives(running: Running) -> None:
    answer = await running.openai.chat.completions.create(
        model="echo", messages=user("é"), logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    (token,) = logprobs.content
    assert (token.token, token.bytes, token.logprob) == ("é", list("é".encode()), -0.5)
    assert [top.token for top in token.top_logprobs] == ["a", "b"]
    stream = await running.openai.chat.completions.create(
        model="echo", messages=user("é"), logprobs=True, stream=True
    )
    streamed = [c.choices[0].logprobs async for c in stream if c.choices[0].delta.content]
    assert streamed[0] is not None
    assert streamed[0].content is not None
    assert streamed[0].content[0].bytes == list("é".encode())
    assert streamed[0].content[0].top_logprobs == []


async def test_messages_reach_the_template_in_its_own_words(running: Running) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages: list[Any] = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
        {"role": "user", "content": "hi", "name": "ann"},
    ]
    await running.openai.chat.completions.create(model="echo", messages=messages)
    assert running.deployments.generators["echo"].rendered[0]["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "call_1"},
        {"role": "user", "content": "hi", "name": "ann"},
    ]


async def test_an_answer_can_be_sent_back_as_the_client_dumps_it(running: Running) -> None:
    answer = await running.openai.chat.completions.create(model="echo", messages=user("a"))
    messages = [*user("a"), answer.choices[0].message.model_dump(), *user("b")]
    again = await running.openai.chat.completions.create(model="echo", messages=messages)
    assert again.choices[0].message.content == "b"


async def test_harmless_parameters_are_taken(running: Running) -> None:
    answer = await running.openai.chat.completions.create(
        model="echo",
        messages=user("a"),
        user="ann",
        metadata={"team": "search"},
        store=False,
        service_tier="auto",
        safety_identifier="x",
        prompt_cache_key="y",
        parallel_tool_calls=True,
        modalities=["text"],
        extra_body={"functions": None, "audio": None, "temperature": None, "stop": None},
    )
    assert answer.choices[0].message.content == "a"


async def test_a_json_schema_becomes_a_grammar(running: Running) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for format_ in (
        {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}},
        {"type": "json_object"},
        {"type": "text"},
    ):
        await running.post(
            "/v1/chat/completions", model="echo", messages=user("a"), response_format=format_
        )
    grammars = [o.sampling.grammar for o in running.deployments.generators["echo"].asked]
    assert grammars[0] is not None
    assert '"integer"' in grammars[0]
    assert grammars[1] is not None
    assert grammars[2] is None


async def test_an_error_before_the_first_token_is_a_status(running: Running) -> None:
    running.deployments.generators["echo"].refusal = Overloaded("full", retry_after_s=2.5)
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError) as caught:
            await running.openai.chat.completions.create(
                model="echo", messages=user("a"), stream=stream
            )
        assert caught.value.code == "overloaded"
        assert caught.value.response.headers["retry-after"] == "3"


async def test_an_error_in_mid_stream_is_the_last_event(running: Running) -> None:
    response = await running.post(
        "/v1/chat/completions", model="crashing", messages=user("a"), stream=True
    )
    assert response.status_code == 200
    *chunks, error = events(response)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "only"
    assert error["error"]["code"] == "worker_crashed"
    assert error["error"]["type"] == "server_error"
    with pytest.raises(openai.APIError, match="died"):
        async for _ in await running.openai.chat.completions.create(
            model="crashing", messages=user("a"), stream=True
        ):
            pass
    page = running.metrics.render().decode()
    assert 'deepseek_stream_errors_total{code="worker_crashed",model="crashing"} 2.0' in page


async def test_an_error_in_mid_answer_is_a_status_without_stream(running: Running) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        await running.openai.chat.completions.create(model="crashing", messages=user("a"))
    assert caught.value.status_code == 503
    assert caught.value.code == "worker_crashed"
