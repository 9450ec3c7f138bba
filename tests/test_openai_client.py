"""The official `openai` client against the real platform with its real models."""

import asyncio
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.served import Served, serve

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(180)]

TOOL_TEMPLATE = """{%- if tools %}<tool_call>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or '' }}{% for call in m.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}<|im_start|>assistant
"""
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Ulm", "Bern"]}, "days": {"enum": [1, 2]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def served(
    model_home: Path, tiny_qwen3_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("served")
    tools = directory / "with-tools"
    tools.mkdir()
    for item in tiny_qwen3_dir.iterdir():
        (tools / item.name).symlink_to(item)
    template = tools / "chat_template.jinja"
    template.unlink(missing_ok=True)
    template.write_text(TOOL_TEMPLATE)
    file = directory / "deployment.yaml"
    file.write_text(
        "models:\n"
        "  smollm2-135m: {source: smollm2-135m, dtype: float32}\n"
        "  minilm-l6: {source: minilm-l6}\n"
        "  sentiment: {source: sentiment}\n"
        "  with-tools: {source: ./with-tools}\n"
        "pools:\n  default: {kv_cache_bytes: 512MiB}\n"
    )
    with serve(file, home=model_home) as platform:
        yield platform


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as openai_client:
        yield openai_client


def test_models_are_listed_under_their_names(client: OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert names == {"smollm2-135m", "minilm-l6", "sentiment", "with-tools"}
    assert client.models.retrieve("minilm-l6").id == "minilm-l6"


def test_chat_answers_the_question(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2-135m", messages=CAPITAL, temperature=0, max_tokens=30
    )
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_carries_the_same_answer_and_its_usage(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="smollm2-135m",
        messages=CAPITAL,
        temperature=0,
        max_tokens=30,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "The capital of France is Paris."
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    assert len(chunks) > 5


def test_a_plain_completion_continues_the_text(client: OpenAI) -> None:
    answer = client.completions.create(
        model="smollm2-135m", prompt="Monday, Tuesday, Wednesday,", temperature=0, max_tokens=6
    )
    assert "Thursday" in answer.choices[0].text


def test_several_answers_seeds_and_logprobs(client: OpenAI) -> None:
    def ask() -> list[str]:
        answer = client.chat.completions.create(
            model="smollm2-135m", messages=CAPITAL, n=3, seed=5, max_tokens=12, temperature=1.2,
            logprobs=True, top_logprobs=2,
        )  # fmt: skip
        assert answer.choices[0].logprobs is not None
        content = answer.choices[0].logprobs.content
        assert content is not None
        assert all(len(position.top_logprobs) == 2 for position in content)
        assert all(position.logprob <= 0 for position in content)
        return [choice.message.content or "" for choice in answer.choices]

    first = ask()
    assert first == ask()
    assert len(set(first)) == 3


def test_a_stop_string_is_honoured(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2-135m", messages=CAPITAL, temperature=0, max_tokens=30, stop=[" France"]
    )
    assert answer.choices[0].message.content == "The capital of"
    assert answer.choices[0].finish_reason == "stop"


def test_a_json_schema_binds_the_answer(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "population": {"type": "integer", "minimum": 0, "maximum": 99999999},
            "kind": {"enum": ["capital", "village"]},
        },
        "required": ["city", "population", "kind"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="smollm2-135m",
        messages=[{"role": "user", "content": "Describe Paris as JSON."}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": schema, "strict": True},
        },
        temperature=0,
        max_tokens=200,
    )
    value = json.loads(answer.choices[0].message.content or "")
    assert set(value) == {"city", "population", "kind"}
    assert value["kind"] in ("capital", "village")
    assert isinstance(value["population"], int)


def test_embeddings_of_like_sentences_are_near(client: OpenAI) -> None:
    texts = ["A man is eating food.", "A man eats something.", "The stock market fell."]
    vectors = [
        item.embedding for item in client.embeddings.create(model="minilm-l6", input=texts).data
    ]
    assert all(len(vector) == 384 for vector in vectors)

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    assert cosine(vectors[0], vectors[1]) == pytest.approx(0.875, abs=0.005)
    assert cosine(vectors[0], vectors[2]) < 0.3


def test_sentiment_and_reranking(served: Served) -> None:
    classified = httpx.post(
        f"{served.url}/v1/classify",
        json={"model": "sentiment", "input": ["a wonderful, moving film", "dull and pointless"]},
        timeout=60,
    ).json()
    assert [row["label"] for row in classified["data"]] == ["positive", "negative"]
    ranked = httpx.post(
        f"{served.url}/v1/rerank",
        json={
            "model": "minilm-l6",
            "query": "How do I boil an egg?",
            "documents": ["Trains to Berlin", "Cook eggs for seven minutes in water"],
        },
        timeout=60,
    ).json()
    assert ranked["results"][0]["index"] == 1


def test_a_required_tool_is_called_with_valid_arguments(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="with-tools",
        messages=[{"role": "user", "content": "Weather?"}],
        tools=[WEATHER],  # type: ignore[list-item]
        tool_choice="required",
        seed=1,
        max_tokens=200,
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    function = choice.message.tool_calls[0].function  # type: ignore[union-attr]
    assert function.name == "get_weather"
    arguments = json.loads(function.arguments)
    assert arguments["city"] in ("Ulm", "Bern")
    assert arguments["days"] in (1, 2)
    follow_up = client.chat.completions.create(
        model="with-tools",
        messages=[
            {"role": "user", "content": "Weather?"},
            choice.message.model_dump(exclude_none=True),  # type: ignore[list-item]
            {"role": "tool", "tool_call_id": choice.message.tool_calls[0].id, "content": "sunny"},
        ],
        tools=[WEATHER],  # type: ignore[list-item]
        tool_choice="none",
        max_tokens=5,
    )
    assert follow_up.choices[0].message.tool_calls is None


def test_tools_on_a_model_that_knows_none_are_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="smollm2-135m",
            messages=CAPITAL,
            tools=[WEATHER],  # type: ignore[list-item]
        )
    assert caught.value.param == "tools"


def test_errors_have_the_clients_own_classes(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=CAPITAL)
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="minilm-l6", messages=CAPITAL)
    assert wrong.value.code == "wrong_task"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(
            model="smollm2-135m", messages=[{"role": "user", "content": "word " * 9000}]
        )
    assert long.value.code == "context_length_exceeded"


async def test_many_at_once_answer_as_alone(served: Served) -> None:
    prompts = [f"Write {n % 5 + 1} words about the number {n}." + " Please." * n for n in range(16)]
    async with AsyncOpenAI(
        base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=120
    ) as many:

        async def ask(number: int) -> str:
            stream = await many.chat.completions.create(
                model="smollm2-135m",
                messages=[{"role": "user", "content": prompts[number]}],
                temperature=0,
                max_tokens=8 + number * 3,
                stream=True,
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        async def embed(number: int) -> int:
            result = await many.embeddings.create(model="minilm-l6", input=f"text {number} " * 5)
            return len(result.data[0].embedding)

        alone = [await ask(number) for number in range(16)]
        together = await asyncio.gather(
            *(ask(n) for n in range(16)), *(embed(n) for n in range(50))
        )
    assert list(together[:16]) == alone
    assert together[16:] == [384] * 50


def test_a_client_that_leaves_frees_its_slot(served: Served) -> None:
    request = {"model": "smollm2-135m", "messages": CAPITAL, "stream": True, "max_tokens": 2000,
               "temperature": 0, "ignore_eos": True}  # fmt: skip
    for _ in range(5):
        with httpx.stream(
            "POST", f"{served.url}/v1/chat/completions", json=request, timeout=60
        ) as response:
            next(response.iter_bytes())
    pattern = re.compile(r'^deepseek_\w*running\w*\{[^}]*model="smollm2-135m"[^}]*\} (\S+)$', re.M)
    while True:
        text = httpx.get(f"{served.url}/metrics").text
        values = [float(value) for value in pattern.findall(text)]
        assert values, text
        if set(values) == {0.0}:
            break


def test_sigterm_lets_a_stream_finish_and_exits_cleanly(model_home: Path, tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("models:\n  chat: {source: smollm2-135m}\n")
    with serve(file, home=model_home) as platform:
        request = {"model": "chat", "messages": CAPITAL, "stream": True, "max_tokens": 100,
                   "temperature": 0, "ignore_eos": True}  # fmt: skip
        with httpx.stream(
            "POST", f"{platform.url}/v1/chat/completions", json=request, timeout=60
        ) as response:
            lines = response.iter_lines()
            next(lines)
            platform.process.terminate()
            rest = list(lines)
        assert rest[-2:].count("data: [DONE]") == 1
        assert platform.process.wait(timeout=30) == 0


def test_a_port_in_use_is_named(served: Served, tmp_path: Path) -> None:
    port = int(served.url.rpartition(":")[2])
    file = tmp_path / "taken.yaml"
    file.write_text(f"models:\n  chat: {{source: smollm2-135m}}\ngateway: {{port: {port}}}\n")
    result = subprocess.run(
        [sys.executable, "-m", "deepseek.cli.main", "serve", "-f", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert f"127.0.0.1:{port}" in result.stderr
    assert "--port" in result.stderr
    assert "Traceback" not in result.stderr
