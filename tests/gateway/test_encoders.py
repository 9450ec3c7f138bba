"""`/v1/embeddings`, `/v1/rerank` and `/v1/classify`."""

import base64
import math
from typing import Any

import numpy as np
import pytest

from tests.gateway.conftest import Running

pytestmark = pytest.mark.server


async def test_the_client_gets_embeddings_in_either_encoding(running: Running) -> None:
    for encoding in ("float", "base64"):
        answer = await running.openai.embeddings.create(
            model="embedder",
            input=["hello", "a"],
            encoding_format=encoding,
        )
        assert [item.index for item in answer.data] == [0, 1]
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == 6
    plain = await running.openai.embeddings.create(model="embedder", input="hello")
    assert plain.data[0].embedding == [5.0, 2.0, 1.0, 0.0]


async def test_base64_is_little_endian_float32(running: Running) -> None:
    response = await running.post(
        "/v1/embeddings", model="embedder", input="hello", encoding_format="base64"
    )
    data = base64.b64decode(response.json()["data"][0]["embedding"])
    assert np.frombuffer(data, dtype="<f4").tolist() == [5.0, 2.0, 1.0, 0.0]


@pytest.mark.parametrize("tokens", [[104, 105], [[104, 105], [97]]])
async def test_inputs_may_be_token_ids(running: Running, tokens: Any) -> None:
    answer = await running.openai.embeddings.create(model="embedder", input=tokens)
    assert answer.data[0].embedding == [2.0, 1.0, 1.0, 0.0]
    assert len(answer.data) == (2 if isinstance(tokens[0], list) else 1)


async def test_fewer_dimensions_are_at_length_one_again(running: Running) -> None:
    answer = await running.openai.embeddings.create(model="embedder", input="hello", dimensions=2)
    vector = answer.data[0].embedding
    assert len(vector) == 2
    assert math.hypot(*vector) == pytest.approx(1)
    assert vector[0] / vector[1] == pytest.approx(5 / 2)
    whole = await running.openai.embeddings.create(model="embedder", input="hello", dimensions=4)
    assert whole.data[0].embedding == [5.0, 2.0, 1.0, 0.0]


async def test_truncate_takes_what_is_too_long(running: Running) -> None:
    for path, body in (
        ("/v1/embeddings", {"model": "embedder", "input": "a" * 600}),
        ("/v1/classify", {"model": "tagger", "input": "a" * 600}),
    ):
        assert (await running.post(path, **body)).status_code == 400
        assert (await running.post(path, **body, truncate=True)).status_code == 200


async def test_rerank_orders_documents_by_relevance(running: Running) -> None:
    response = await running.post(
        "/v1/rerank",
        model="embedder",
        query="abc",
        documents=["xyz", {"text": "abc"}, "axy", "aby"],
        top_n=3,
        return_documents=True,
    )
    body = response.json()
    assert [result["index"] for result in body["results"]] == [1, 3, 2]
    assert [r["document"]["text"] for r in body["results"]] == ["abc", "aby", "axy"]
    scores = [result["relevance_score"] for result in body["results"]]
    assert scores == pytest.approx([1, 2 / 3, 1 / 3])
    assert body["usage"]["total_tokens"] == 15


async def test_rerank_leaves_documents_out_unless_asked(running: Running) -> None:
    response = await running.post("/v1/rerank", model="embedder", query="a", documents=["a", "b"])
    assert [set(r) for r in response.json()["results"]] == [{"index", "relevance_score"}] * 2


async def test_a_classifier_gives_a_distribution(running: Running) -> None:
    response = await running.post("/v1/classify", model="org/classifier", input=["aaaaa", "bbbbb"])
    body = response.json()
    assert [item["index"] for item in body["data"]] == [0, 1]
    first = body["data"][0]
    weights = [1, math.e, math.e**2]
    expected = [weight / sum(weights) for weight in weights]
    assert first["probs"] == pytest.approx(expected)
    assert first["label"] == "positive"
    assert first["num_classes"] == 3
    assert first["scores"] == dict(
        zip(("negative", "neutral", "positive"), first["probs"], strict=True)
    )


async def test_a_multi_label_classifier_gives_each_its_own_probability(running: Running) -> None:
    response = await running.post("/v1/classify", model="tagger", input="aaaaa")
    probs = response.json()["data"][0]["probs"]
    assert probs == pytest.approx([1 / (1 + math.exp(-logit)) for logit in (0, 1, 2)])


async def test_a_classifier_embeds_its_logits(running: Running) -> None:
    answer = await running.openai.embeddings.create(model="org/classifier", input="aaaaa")
    assert answer.data[0].embedding == [0.0, 1.0, 2.0]


async def test_tokens_of_encoders_are_counted(running: Running) -> None:
    await running.post("/v1/embeddings", model="embedder", input="hello")
    await running.post("/v1/rerank", model="embedder", query="a", documents=["b"])
    page = running.metrics.render().decode()
    assert 'deepseek_prompt_tokens_total{model="embedder"} 7.0' in page
