"""Precision per request, from the official client down to the kernels of a real worker."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.served import Served, serve

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(180)]

HEADER = "x-deepseek-precision"
QUESTIONS = [
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Why is the sky blue?",
    "Write one sentence about the sea.",
]
FILE = """
models:
  chat:
    source: smollm2-135m
    quantization: nested
    precision:
      rules:
        - {use: int8, service_tiers: [priority], keep: true}
        - {use: int4, service_tiers: [flex]}
        - {use: int4, min_prompt_tokens: 200}
  fine: {source: %(tiny)s, quantization: nested, precision: {minimum: int8}}
  plain: {source: %(tiny)s, quantization: int8}
  busy:
    source: %(tiny)s
    quantization: nested
    pool: narrow
    precision: {shedding: {wait: 100ms, calm: 300ms}}
pools:
  default: {device: cpu, kv_cache_bytes: 512MiB}
  narrow: {device: cpu, kv_cache_bytes: 64MiB, max_running: 1, snapshot_interval_s: 50ms}
"""


@pytest.fixture(scope="module")
def served(
    model_home: Path, tiny_qwen3_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    file = tmp_path_factory.mktemp("served") / "deployment.yaml"
    file.write_text(FILE % {"tiny": tiny_qwen3_dir})
    with serve(file, home=model_home) as platform:
        yield platform


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as openai_client:
        yield openai_client


def ask(client: OpenAI, model: str = "chat", text: str = QUESTIONS[0], **fields: Any) -> Any:
    """Return the raw answer, whose headers can be read."""
    precision = fields.pop("precision", None)
    body = {} if precision is None else {"precision": precision}
    return client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": text}],
        temperature=0,
        extra_body=body,
        **{"max_tokens": 24, **fields},
    )


def text_of(raw: Any) -> str:
    content = raw.parse().choices[0].message.content
    assert isinstance(content, str)
    return content


def test_answers_are_the_same_alone_and_mixed_in_one_batch(client: OpenAI, served: Served) -> None:
    alone = {
        (precision, question): text_of(ask(client, text=question, precision=precision))
        for precision in ("int8", "int4")
        for question in QUESTIONS
    }
    assert any(alone["int8", question] != alone["int4", question] for question in QUESTIONS)

    async def mixed() -> dict[tuple[str, str], tuple[str, str]]:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as many:

            async def one(precision: str, question: str) -> tuple[str, str]:
                raw = await many.chat.completions.with_raw_response.create(
                    model="chat",
                    messages=[{"role": "user", "content": question}],
                    temperature=0,
                    max_tokens=24,
                    extra_body={"precision": precision},
                )
                return raw.headers[HEADER], text_of(raw)

            found = await asyncio.gather(*(one(*key) for key in alone))
            return dict(zip(alone, found, strict=True))

    for (precision, question), (header, text) in asyncio.run(mixed()).items():
        assert header == precision
        assert text == alone[precision, question]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "int8"),
        ({"precision": "int4"}, "int4"),
        ({"service_tier": "flex"}, "int4"),
        ({"service_tier": "flex", "precision": "int8"}, "int8"),
        ({"service_tier": "priority", "text": "word " * 250}, "int8"),
        ({"text": "word " * 250}, "int4"),
    ],
)
def test_the_header_tells_the_precision_of_streams_too(
    client: OpenAI, fields: dict[str, Any], told: str
) -> None:
    assert ask(client, max_tokens=2, **fields).headers[HEADER] == told
    raw = ask(client, max_tokens=2, stream=True, **fields)
    assert raw.headers[HEADER] == told
    assert [chunk for chunk in raw.parse() if chunk.choices][-1].choices[0].finish_reason


def test_a_prompt_computed_in_one_precision_is_not_reused_in_the_other(client: OpenAI) -> None:
    text = " ".join(f"number {n}" for n in range(40))

    def cached(precision: str) -> int:
        usage = ask(client, text=text, precision=precision, max_tokens=2).parse().usage
        count = usage.prompt_tokens_details.cached_tokens
        assert isinstance(count, int)
        return count

    # What comes before the text (the template's system message) others may have left.
    first = {precision: cached(precision) for precision in ("int8", "int4")}
    again = {precision: cached(precision) for precision in ("int8", "int4")}
    assert all(first[precision] < 48 for precision in first)
    assert all(again[precision] >= first[precision] + 80 for precision in again)


@pytest.mark.parametrize(
    ("model", "fields", "words"),
    [
        ("plain", {"precision": "int4"}, "has its weights in int8 only"),
        ("plain", {"service_tier": "flex"}, "service_tier: model 'plain'"),
        ("fine", {"precision": "int4"}, "is less than what requests get from model 'fine'"),
    ],
)
def test_what_a_model_does_not_have_is_refused_by_name(
    client: OpenAI, model: str, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        ask(client, model, **fields)
    assert caught.value.code == "unsupported_parameter"
    assert caught.value.param == next(iter(fields))
    assert HEADER not in caught.value.response.headers


def test_tokens_are_counted_by_precision(client: OpenAI, served: Served) -> None:
    ask(client, "fine", precision="int8", max_tokens=5)
    page = httpx.get(f"{served.url}/metrics").text
    assert 'deepseek_precision_tokens_total{model="fine",precision="int8"} 5.0' in page
    assert 'deepseek_precision_requests_total{model="fine",precision="int8",reason="named"}' in page
    assert 'deepseek_precision_tokens_total{model="plain"' not in page


def test_under_pressure_those_who_name_nothing_get_int4_and_why_tells(
    client: OpenAI, served: Served
) -> None:
    assert ask(client, "busy", max_tokens=1).headers[HEADER] == "int8"

    async def crowd() -> list[str]:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as many:
            said: list[str] = []

            async def one() -> None:
                raw = await many.chat.completions.with_raw_response.create(
                    model="busy",
                    messages=[{"role": "user", "content": "go on"}],
                    max_tokens=400,
                    extra_body={"ignore_eos": True},
                )
                said.append(raw.headers[HEADER])

            tasks = []
            deadline = time.monotonic() + 60
            while "int4" not in said and time.monotonic() < deadline:
                tasks += [asyncio.create_task(one()) for _ in range(4)]
                await asyncio.sleep(0.3)
            named = await many.chat.completions.with_raw_response.create(
                model="busy",
                messages=[{"role": "user", "content": "go on"}],
                max_tokens=1,
                extra_body={"precision": "int8"},
            )
            assert named.headers[HEADER] == "int8"
            await asyncio.gather(*tasks)
            return said

    assert "int4" in asyncio.run(crowd())
    deadline = time.monotonic() + 30
    while ask(client, "busy", max_tokens=1).headers[HEADER] != "int8":
        assert time.monotonic() < deadline, "shedding does not end"
        time.sleep(0.1)
    decisions = httpx.get(f"{served.url}/admin/decisions/busy").json()["data"]
    actions = [d["action"] for d in decisions if d["action"].endswith("-precision")]
    assert actions[:2] == ["shed-precision", "restore-precision"]
    page = httpx.get(f"{served.url}/metrics").text
    assert 'deepseek_precision_requests_total{model="busy",precision="int4",reason="shed"}' in page
