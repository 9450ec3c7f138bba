"""What clients get wrong: the right status, an error that names the field, no trace."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from tests.gateway.conftest import Running, running_gateway

pytestmark = [pytest.mark.server, pytest.mark.asyncio(loop_scope="module")]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
EMBEDDINGS, RERANK, CLASSIFY = "/v1/embeddings", "/v1/rerank", "/v1/classify"
HI: list[Any] = [{"role": "user", "content": "hi"}]
JSON = {"content-type": "application/json"}
BAD, TOO_LONG, UNSUPPORTED = "invalid_request", "context_length_exceeded", "unsupported_parameter"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Running]:
    async with running_gateway(max_body_bytes=1 << 20, max_batch_inputs=4, max_n=4) as server:
        yield server


def error_of(response: httpx.Response) -> Any:
    """Return the error after checking that it is one of ours and tells no secrets."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert "Traceback" not in response.text
    assert ".py" not in response.text
    return body["error"]


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": HI, **fields}


def message(**fields: Any) -> dict[str, Any]:
    return chat(messages=[*HI, fields])


def tool(name: str = "f", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def asking(text: str) -> dict[str, Any]:
    return chat(messages=[{"role": "user", "content": text}])


def call(**fields: Any) -> dict[str, Any]:
    return chat(model="caller", **fields)


def embed(**fields: Any) -> dict[str, Any]:
    return {"model": "embedder", **fields}


def rerank(**fields: Any) -> dict[str, Any]:
    return {"model": "embedder", "query": "a", "documents": ["a"], **fields}


INVALID: list[tuple[str, dict[str, Any], str | None, str]] = [
    # route, body, param, code
    (CHAT, {"messages": HI}, "model", BAD),
    (CHAT, {"model": "echo"}, "messages", BAD),
    (CHAT, {"model": 3, "messages": HI}, "model", BAD),
    (CHAT, {"model": "", "messages": HI}, "model", BAD),
    (CHAT, chat(model="embedder"), "model", "wrong_task"),
    (CHAT, chat(messages=[]), "messages", BAD),
    (CHAT, chat(messages="hi"), "messages", BAD),
    (CHAT, message(role="user", content=3), "messages[1].content", BAD),
    (CHAT, message(role="user", content=None), "messages[1].content", BAD),
    (CHAT, message(role="user", content=[]), "messages[1].content", BAD),
    (CHAT, message(role="user"), "messages[1].content", BAD),
    (CHAT, message(role="wizard", content="a"), "messages[1].role", BAD),
    (CHAT, message(content="a"), "messages[1].role", BAD),
    (CHAT, message(role="user", content="a", mood=1), "messages[1].mood", BAD),
    (CHAT, message(role="tool", content="a"), "messages[1].tool_call_id", BAD),
    (CHAT, message(role="assistant"), "messages[1].content", BAD),
    (
        CHAT,
        message(role="user", content=[{"type": "image_url", "image_url": {"url": "x"}}]),
        "messages[1].content[0].type",
        UNSUPPORTED,
    ),
    (CHAT, message(role="user", content=[{}]), "messages[1].content[0].type", BAD),
    (CHAT, message(role="user", content=[{"text": "a"}]), "messages[1].content[0].type", BAD),
    (
        CHAT,
        message(role="user", content=[{"image_url": {"url": "x"}, "type": "image_url"}]),
        "messages[1].content[0].image_url",
        UNSUPPORTED,
    ),
    (CHAT, chat(max_tokens=0), "max_tokens", BAD),
    (CHAT, chat(max_tokens=-1), "max_tokens", BAD),
    (CHAT, chat(max_tokens="9"), "max_tokens", BAD),
    (CHAT, chat(max_tokens=1.5), "max_tokens", BAD),
    (CHAT, chat(max_tokens=10**9), "max_tokens", TOO_LONG),
    (CHAT, chat(max_tokens=10**30), "max_tokens", BAD),
    (CHAT, chat(max_completion_tokens=10**9), "max_completion_tokens", TOO_LONG),
    (CHAT, chat(max_tokens=3, max_completion_tokens=4), "max_tokens", BAD),
    (CHAT, chat(min_tokens=5, max_tokens=4), "min_tokens", BAD),
    (CHAT, asking("a" * 100_000), "messages", TOO_LONG),
    (CHAT, chat(temperature=2.1), "temperature", BAD),
    (CHAT, chat(temperature=-0.1), "temperature", BAD),
    (CHAT, chat(temperature="hot"), "temperature", BAD),
    (CHAT, chat(top_p=0), "top_p", BAD),
    (CHAT, chat(top_k=-2), "top_k", BAD),
    (CHAT, chat(min_p=1.5), "min_p", BAD),
    (CHAT, chat(presence_penalty=3), "presence_penalty", BAD),
    (CHAT, chat(repetition_penalty=0), "repetition_penalty", BAD),
    (CHAT, chat(seed=10**30), "seed", BAD),
    (CHAT, chat(n=0), "n", BAD),
    (CHAT, chat(n=5), "n", BAD),
    (CHAT, chat(stop=[""]), "stop[0]", BAD),
    (CHAT, chat(stop=["x"] * 17), "stop", BAD),
    (CHAT, chat(stop_token_ids=[-1]), "stop_token_ids[0]", BAD),
    (CHAT, chat(logit_bias={"a": 1}), "logit_bias", BAD),
    (CHAT, chat(logit_bias={"1": 101}), "logit_bias", BAD),
    (CHAT, chat(logprobs=True, top_logprobs=21), "top_logprobs", BAD),
    (CHAT, chat(top_logprobs=2), "top_logprobs", BAD),
    (CHAT, chat(stream="yes"), "stream", BAD),
    (CHAT, chat(stream_options={"include_usage": True}), "stream_options", BAD),
    (CHAT, chat(stream=True, stream_options={"x": 1}), "stream_options.x", BAD),
    (CHAT, chat(temprature=1), "temprature", BAD),
    (CHAT, chat(response_format={"type": "xml"}), "response_format.type", BAD),
    (CHAT, chat(tools=[tool("f")]), "tools", UNSUPPORTED),
    (CHAT, call(tools=[tool("a b")]), "tools[0].function.name", BAD),
    (CHAT, call(tools=[tool(), tool()]), "tools[1].function.name", BAD),
    (CHAT, call(tools=[{"type": "custom", "custom": {}}]), "tools[0].type", BAD),
    (CHAT, call(tool_choice="required"), "tool_choice", BAD),
    (CHAT, call(tools=[tool()], tool_choice=tool("g")), "tool_choice", BAD),
    (
        CHAT,
        call(tools=[tool()], response_format={"type": "json_object"}),
        "response_format",
        UNSUPPORTED,
    ),
    (
        CHAT,
        call(tools=[tool(parameters={"type": "nothing"})], tool_choice="required"),
        "tools",
        "invalid_grammar",
    ),
    (COMPLETIONS, {"model": "echo"}, "prompt", BAD),
    (COMPLETIONS, {"model": "echo", "prompt": ""}, "prompt", BAD),
    (COMPLETIONS, {"model": "echo", "prompt": []}, "prompt", BAD),
    (COMPLETIONS, {"model": "echo", "prompt": [1, "a"]}, "prompt", BAD),
    (COMPLETIONS, {"model": "echo", "prompt": [[]]}, "prompt[0]", BAD),
    (COMPLETIONS, {"model": "echo", "prompt": [-1]}, "prompt[0]", BAD),
    (COMPLETIONS, {"model": "echo", "prompt": [2**64]}, "prompt[0]", BAD),
    (COMPLETIONS, {"model": "echo", "prompt": ["a"] * 5}, "prompt", BAD),
    (COMPLETIONS, {"model": "small", "prompt": "a" * 40}, "prompt", TOO_LONG),
    (COMPLETIONS, {"model": "echo", "prompt": "a", "logprobs": 6}, "logprobs", BAD),
    (COMPLETIONS, {"model": "echo", "prompt": "a", "echo": True, "logprobs": 1}, "echo", BAD),
    (EMBEDDINGS, embed(input=""), "input", BAD),
    (EMBEDDINGS, embed(input=[]), "input", BAD),
    (EMBEDDINGS, embed(input=["a", ""]), "input[1]", BAD),
    (EMBEDDINGS, embed(input=[1, "a"]), "input", BAD),
    (EMBEDDINGS, embed(input=["a"] * 5), "input", BAD),
    (EMBEDDINGS, embed(input=["a", "a" * 600]), "input[1]", TOO_LONG),
    (EMBEDDINGS, embed(input="a", dimensions=5), "dimensions", BAD),
    (EMBEDDINGS, embed(input="a", encoding_format="hex"), "encoding_format", BAD),
    (EMBEDDINGS, {"model": "echo", "input": "a"}, "model", "wrong_task"),
    (RERANK, rerank(documents=[]), "documents", BAD),
    (RERANK, rerank(query="", documents=["a"]), "query", BAD),
    (RERANK, rerank(documents=["a"] * 5), "documents", BAD),
    (RERANK, rerank(documents=["a"], top_n=0), "top_n", BAD),
    (RERANK, rerank(documents=[{"txt": "a"}]), "documents[0].txt", BAD),
    (RERANK, {"model": "org/classifier", "query": "a", "documents": ["a"]}, "model", "wrong_task"),
    (CLASSIFY, embed(input="a"), "model", "wrong_task"),
    (CLASSIFY, {"model": "org/classifier", "input": [1]}, "input[0]", BAD),
]  # fmt: skip


@pytest.mark.parametrize(("route", "body", "param", "code"), INVALID)
async def test_an_invalid_field_is_named(
    shared: Running, route: str, body: dict[str, Any], param: str | None, code: str
) -> None:
    response = await shared.http.post(route, json=body)
    error = error_of(response)
    assert response.status_code == 400, error
    assert error["type"] == "invalid_request_error"
    assert (error["code"], error["param"]) == (code, param), error["message"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("best_of", 2),
        ("function_call", {"name": "f"}),
        ("functions", [{"name": "f"}]),
        ("modalities", ["text", "audio"]),
        ("moderation", {}),
        ("prediction", {"type": "content", "content": "x"}),
        ("prompt_cache_options", {"ttl": 1}),
        ("reasoning_effort", "high"),
        ("store", True),
        ("verbosity", "low"),
        ("web_search_options", {}),
    ],
)
async def test_what_this_deployment_cannot_do_is_refused_with_a_remedy(
    shared: Running, name: str, value: Any
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await shared.openai.chat.completions.create(
            model="echo", messages=HI, extra_body={name: value}
        )
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", name)
    assert ": " in caught.value.message


@pytest.mark.parametrize(("name", "value"), [("suffix", "end"), ("best_of", 3)])
async def test_completions_refuse_what_they_cannot_do(
    shared: Running, name: str, value: Any
) -> None:
    response = await shared.post(COMPLETIONS, model="echo", prompt="a", **{name: value})
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (
        400,
        "unsupported_parameter",
        name,
    )


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nothing"},
        {"type": "string", "minLength": 5, "maxLength": 2},
        {"enum": []},
        {"$ref": "#/nowhere"},
        {"type": "string", "pattern": "("},
        {"not": {"type": "string"}},
    ],
)
async def test_a_schema_without_answers_is_refused_before_it_costs_a_slot(
    shared: Running, schema: dict[str, Any]
) -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    before = len(shared.deployments.generators["echo"].asked)
    response = await shared.http.post(CHAT, json=chat(response_format=format_))
    error = error_of(response)
    assert (response.status_code, error["code"]) == (400, "invalid_grammar")
    assert error["param"] == "response_format"
    assert len(shared.deployments.generators["echo"].asked) == before


async def test_an_unknown_model_is_404_and_makes_no_series(shared: Running) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await shared.openai.chat.completions.create(model="made-up-name", messages=HI)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    for route, body in (
        (COMPLETIONS, {"prompt": "a"}),
        (EMBEDDINGS, {"input": "a"}),
        (RERANK, {"query": "a", "documents": ["a"]}),
        (CLASSIFY, {"input": "a"}),
    ):
        response = await shared.http.post(route, json={"model": "made-up-name", **body})
        assert response.status_code == 404
        assert error_of(response)["code"] == "model_not_found"
    assert "made-up-name" not in (await shared.http.get("/metrics")).text


def _asking(text: bytes) -> bytes:
    return b'{"model": "echo", "messages": [{"role": "user", "content": "%b"}]}' % text


NO_JSON = {
    "empty": b"",
    "truncated": b'{"model": "echo"',
    "bad UTF-8": _asking(b"\xff\xfe"),
    "encoded surrogate": _asking(b"\xed\xa0\x80"),
    "lone surrogate": _asking(b"\\ud800"),
    "reversed surrogates": _asking(b"\\udc00\\ud800"),
    "null byte": b'{"model": "echo", "messages": \x00}',
    "raw null byte in text": _asking(b"\x00"),
    "NaN": b'{"model": "echo", "messages": [], "temperature": NaN}',
    "Infinity": b'{"model": "echo", "messages": [], "temperature": Infinity}',
    "two values": b"{} {}",
    "UTF-16": '{"model": "echo"}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "deep": b'{"model": "echo", "messages": [], "chat_template_kwargs": ' + b'{"a":' * 50_000,
}


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON.keys())
async def test_a_body_that_is_not_json_is_400(shared: Running, body: bytes) -> None:
    for route in (CHAT, COMPLETIONS, EMBEDDINGS, RERANK, CLASSIFY):
        response = await shared.http.post(route, content=body, headers=JSON)
        assert response.status_code == 400, response.text
        assert error_of(response)["code"] in {"invalid_json", "invalid_request"}


@pytest.mark.parametrize("text", ["1e999", "-1e999", "9" * 400, "[]", '"\\ud800"', "{}", "true"])
async def test_an_odd_number_is_400_wherever_it_stands(shared: Running, text: str) -> None:
    for field in ("temperature", "seed", "max_tokens", "n"):
        head = '{"model": "echo", "messages": [{"role": "user", "content": "hi"}], '
        for tail in (f'"{field}": {text}}}', f'"functions": null, "{field}": {text}}}'):
            response = await shared.http.post(CHAT, content=head + tail, headers=JSON)
            assert response.status_code == 400, response.text
            assert error_of(response)["param"] in {field, None}


async def test_a_refused_parameter_in_a_broken_body_is_400(shared: Running) -> None:
    response = await shared.http.post(CHAT, content=b'{"functions": [], "model": ', headers=JSON)
    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_json"


async def test_null_characters_and_emoji_are_text(shared: Running) -> None:
    answer = await shared.openai.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": "a\x00b\U0001f600"}]
    )
    assert answer.choices[0].message.content is not None
    assert answer.choices[0].message.content.startswith("a\x00b")


@pytest.mark.parametrize("media", [None, "text/plain", "application/x-www-form-urlencoded", ";"])
async def test_a_body_that_is_not_declared_as_json_is_415(
    shared: Running, media: str | None
) -> None:
    headers = {} if media is None else {"content-type": media}
    response = await shared.http.post(CHAT, content=json.dumps(chat()), headers=headers)
    assert response.status_code == 415
    assert error_of(response)["code"] == "unsupported_media_type"


async def test_a_compressed_body_is_415(shared: Running) -> None:
    headers = {**JSON, "content-encoding": "gzip"}
    response = await shared.http.post(CHAT, content=b"\x1f\x8b", headers=headers)
    assert response.status_code == 415


async def test_json_with_a_charset_is_taken(shared: Running) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    response = await shared.http.post(CHAT, content=json.dumps(chat()), headers=headers)
    assert response.status_code == 200


async def test_a_body_of_50_mb_is_413_and_disturbs_nobody(shared: Running) -> None:
    async def too_large() -> None:
        response = await shared.http.post(CHAT, content=b" " * 50_000_000, headers=JSON)
        assert response.status_code == 413
        error = error_of(response)
        assert error["code"] == "body_too_large"
        assert "1048576" in error["message"]

    async def chunked() -> None:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(50):
                yield b" " * 1_000_000

        response = await shared.http.post(CHAT, content=parts(), headers=JSON)
        assert response.status_code == 413
        assert error_of(response)["code"] == "body_too_large"

    async def neighbour() -> None:
        response = await shared.http.post(CHAT, json=chat())
        assert response.status_code == 200

    await asyncio.gather(too_large(), chunked(), neighbour())
    await neighbour()


async def test_an_oversized_body_is_refused_before_it_is_read(shared: Running) -> None:
    reader, writer = await shared.connect()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: 50000000\r\nexpect: 100-continue\r\n\r\n"
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in head
    writer.close()


async def test_a_body_of_exactly_the_limit_is_read(shared: Running) -> None:
    body = json.dumps(chat()).encode()
    body += b" " * ((1 << 20) - len(body))
    assert (await shared.http.post(CHAT, content=body, headers=JSON)).status_code == 200
    body += b" "
    assert (await shared.http.post(CHAT, content=body, headers=JSON)).status_code == 413


async def test_an_unknown_path_is_404_in_json(shared: Running) -> None:
    for path in ("/v1/chat", "/v1/chat/completions/", "/favicon.ico", "/%00", "/v2/%F0%9F"):
        response = await shared.http.get(path)
        assert response.status_code == 404
        assert error_of(response)["code"] == "route_not_found"
    page = (await shared.http.get("/metrics")).text
    assert 'route="unmatched"' in page
    assert "favicon" not in page


async def test_a_wrong_method_is_405_in_json_with_allow(shared: Running) -> None:
    for method, path, allow in (
        ("GET", CHAT, "POST"),
        ("DELETE", "/v1/models/echo", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
        ("OPTIONS", EMBEDDINGS, "POST"),
    ):
        response = await shared.http.request(method, path)
        assert response.status_code == 405
        assert response.headers["allow"] == allow
        assert error_of(response)["code"] == "method_not_allowed"


async def test_a_slow_body_is_408() -> None:
    async with running_gateway(body_timeout_s=0.05) as server:
        reader, writer = await server.connect()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
            b"content-type: application/json\r\ncontent-length: 100000\r\n\r\n{"
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        writer.close()
        await writer.wait_closed()


async def test_a_long_message_is_cut_in_the_error(shared: Running) -> None:
    response = await shared.http.post(CHAT, json=chat(**{"x" * 100_000: 1}))
    assert response.status_code == 400
    assert len(response.content) < 210_000
    assert len(error_of(response)["message"]) < 3000
