"""`deepseek serve` with vLLM in a pool's own Python environment, through the official client."""

import asyncio
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import torch
from openai import AsyncOpenAI, OpenAI
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from tests.engine.hosted import vllm_python
from tests.served import Served, serve
from tests.tiny_models import byte_level_tokenizer

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(600)]

HELLO = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def neox_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family that vLLM runs and the torch engine does not."""
    path = tmp_path_factory.mktemp("neox") / "tiny-neox"
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    GPTNeoXForCausalLM(config).save_pretrained(path)
    byte_level_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def unknown_dir(tiny_qwen3_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family that nobody runs."""
    path = Path(shutil.copytree(tiny_qwen3_dir, tmp_path_factory.mktemp("unknown") / "model"))
    config = json.loads((path / "config.json").read_text())
    config.update(architectures=["NoSuchForCausalLM"], model_type="nosuch")
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def served(
    tiny_qwen3_dir: Path,
    tiny_bert_dir: Path,
    neox_dir: Path,
    unknown_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    file = tmp_path_factory.mktemp("served") / "deployment.yaml"
    # Two models of vLLM, one that `auto` gives to it, an encoder of ours and two models that cannot
    # be loaded share one worker; the twins of the first and the encoder run on the torch engine.
    file.write_text(f"""
models:
  large-share: {{source: {tiny_qwen3_dir}, pool: foreign, engine: vllm, share: 3}}
  other-family: {{source: {neox_dir}, pool: foreign}}
  encoder: {{source: {tiny_bert_dir}, pool: foreign}}
  nobody-runs: {{source: {unknown_dir}, pool: foreign}}
  no-room: {{source: {tiny_qwen3_dir}, pool: foreign, engine: vllm, share: 0.001}}
  small-share: {{source: {tiny_qwen3_dir}, pool: foreign, engine: vllm, share: 1}}
  twin: {{source: {tiny_qwen3_dir}, engine: torch}}
  encoder-twin: {{source: {tiny_bert_dir}}}
pools:
  default: {{device: cpu, num_threads: 1}}
  foreign:
    device: cpu
    python: {vllm_python()}
    num_threads: 1
    kv_cache_bytes: 16MiB
    max_running: 8
    snapshot_interval_s: 100ms
""")
    with serve(file, start_timeout_s=500) as platform:
        yield platform


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0) as client:
        yield client


def test_chat_is_that_of_the_torch_engine(client: OpenAI) -> None:
    answers = [
        client.chat.completions.create(
            model=model, messages=HELLO, temperature=0, max_tokens=40, logprobs=True, top_logprobs=2
        )
        for model in ("large-share", "twin")
    ]
    ours, twin = (answer.choices[0] for answer in answers)
    assert ours.message.content == twin.message.content
    assert ours.finish_reason == twin.finish_reason
    assert answers[0].usage.completion_tokens == answers[1].usage.completion_tokens
    for position, expected in zip(ours.logprobs.content, twin.logprobs.content, strict=True):
        assert position.token == expected.token
        assert position.logprob == pytest.approx(expected.logprob, abs=1e-3)


def test_a_stream_is_the_whole_answer_in_pieces(client: OpenAI) -> None:
    options = {"model": "large-share", "messages": HELLO, "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(**options).choices[0].message.content
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(**options, stream=True)
        if chunk.choices
    ]
    assert len(pieces) > 1
    assert "".join(pieces) == whole


def test_an_answer_follows_its_schema(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2, 3]}},
        "required": ["ok", "n"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="large-share",
        messages=HELLO,
        max_tokens=100,
        seed=1,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "reply", "schema": schema, "strict": True},
        },
    )
    value = json.loads(answer.choices[0].message.content or "")
    assert isinstance(value["ok"], bool)
    assert value["n"] in (1, 2, 3)


def test_auto_gives_a_family_that_is_not_ours_to_vllm(client: OpenAI, neox_dir: Path) -> None:
    prompt = [10, 20, 30]
    answer = client.completions.create(
        model="other-family", prompt=prompt, temperature=0, max_tokens=20,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(neox_dir, dtype=torch.float32)
    ids = torch.tensor([prompt])
    expected = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=20,
        min_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0, 3:]
    assert answer.choices[0].text == byte_level_tokenizer().decode(
        expected, skip_special_tokens=True
    )


def test_an_encoder_runs_beside_them_in_their_environment(client: OpenAI) -> None:
    texts = ["A man is eating food.", "The weather is lovely today."]
    vectors, twins = (
        [row.embedding for row in client.embeddings.create(model=model, input=texts).data]
        for model in ("encoder", "encoder-twin")
    )
    for vector, twin in zip(vectors, twins, strict=True):
        assert vector == pytest.approx(twin, abs=1e-4)


def test_a_model_that_nobody_runs_says_so_and_the_others_serve(
    client: OpenAI, served: Served
) -> None:
    with pytest.raises(openai.InternalServerError, match="NoSuchForCausalLM") as failed:
        client.chat.completions.create(model="nobody-runs", messages=HELLO)
    assert failed.value.status_code == 503
    assert "vLLM" in failed.value.message
    assert httpx.get(f"{served.url}/health/ready").status_code == 503


def test_a_model_without_room_says_what_it_lacks(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match=r"pools\.foreign\.kv_cache_bytes"):
        client.chat.completions.create(model="no-room", messages=HELLO)


async def test_shares_hold_between_two_models_of_vllm(served: Served) -> None:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="-", timeout=300) as client:

        async def keep_busy(model: str, number: int) -> None:
            for round_ in range(100):
                await client.completions.create(
                    model=model,
                    prompt=[number + 1, round_ + 1, 3],
                    max_tokens=400,
                    extra_body={"ignore_eos": True},
                )

        models = ("large-share", "small-share")
        tasks = [asyncio.create_task(keep_busy(m, n)) for m in models for n in range(8)]
        try:
            await _until_busy_s(served, models, at_least=0.5)
            before = await _busy_s(served)
            await _until_busy_s(served, models, at_least=before["small-share"] + 2.0)
            after = await _busy_s(served)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    large, small = (after[model] - before[model] for model in models)
    assert large / small == pytest.approx(3, rel=0.15)


async def test_a_client_that_leaves_frees_its_place(served: Served) -> None:
    request = {"model": "large-share", "messages": HELLO, "stream": True, "max_tokens": 400,
               "temperature": 0, "ignore_eos": True}  # fmt: skip
    async with httpx.AsyncClient(timeout=60) as client:
        for _ in range(4):
            url = f"{served.url}/v1/chat/completions"
            async with client.stream("POST", url, json=request) as response:
                await anext(response.aiter_bytes())
    while any((await _gauges(served, "deepseek_model_running_requests")).values()):
        await asyncio.sleep(0.05)


async def _until_busy_s(served: Served, models: tuple[str, ...], *, at_least: float) -> None:
    busy_s: dict[str, float] = {}
    while min(busy_s.get(model, 0.0) for model in models) < at_least:
        await asyncio.sleep(0.1)
        busy_s = await _busy_s(served)


async def _busy_s(served: Served) -> dict[str, float]:
    return await _gauges(served, "deepseek_model_busy_seconds_total")


async def _gauges(served: Served, name: str) -> dict[str, float]:
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{served.url}/metrics")).text
    found = re.findall(rf'^{name}\{{[^}}]*model="([^"]+)"[^}}]*\}} (\S+)$', text, re.MULTILINE)
    assert found, "no such metric"
    return {model: float(value) for model, value in found}
