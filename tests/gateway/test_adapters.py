"""Adapters over HTTP: loaded, listed, asked, dropped, and refused."""

import openai
import pytest

from deepseek.core.errors import AdapterLoadingOff, AdapterRejected, DeepseekError, RequestTimeout
from tests.gateway.conftest import Running
from tests.gateway.fakes import ADAPTER_DIR

pytestmark = pytest.mark.server

LOAD, DROP = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


async def test_an_adapter_is_a_model_from_its_load_to_its_drop(running: Running) -> None:
    loaded = await running.post(LOAD, lora_name="sql", lora_path=f"{ADAPTER_DIR}sql", model="small")
    assert loaded.status_code == 200
    assert (loaded.json()["id"], loaded.json()["parent"]) == ("sql", "small")
    models = {model.id: model async for model in running.openai.models.list()}
    assert models["sql"].model_extra is not None
    assert models["sql"].model_extra["parent"] == "small"
    assert (models["echo"].model_extra or {})["parent"] is None
    answer = await running.openai.chat.completions.create(
        model="sql", messages=[{"role": "user", "content": "abc"}]
    )
    assert (answer.model, answer.choices[0].message.content) == ("sql", "abc")
    dropped = await running.post(DROP, lora_name="sql")
    assert dropped.json() == {"id": "sql", "object": "model", "deleted": True}
    with pytest.raises(openai.NotFoundError) as caught:
        await running.openai.completions.create(model="sql", prompt="abc")
    assert caught.value.code == "model_not_found"


async def test_an_adapter_loaded_twice_needs_load_inplace(running: Running) -> None:
    body = {"lora_name": "sql", "lora_path": f"{ADAPTER_DIR}sql"}
    await running.post(LOAD, **body)
    twice = await running.post(LOAD, **body)
    assert (twice.status_code, twice.json()["error"]["code"]) == (400, "adapter_rejected")
    assert (await running.post(LOAD, **body, load_inplace=True)).status_code == 200


async def test_an_adapters_requests_are_counted_under_its_deployment(running: Running) -> None:
    """Names that clients choose would make series without end."""
    await running.post(LOAD, lora_name="sql", lora_path=f"{ADAPTER_DIR}sql")
    for stream in (False, True):
        await running.post("/v1/completions", model="sql", prompt="abcd", stream=stream)
    page = (await running.http.get("/metrics")).text
    assert 'deepseek_completion_tokens_total{model="echo"} 8.0' in page
    assert f'{{code="200",model="echo",route="{LOAD}"}} 1.0' in page
    assert '"sql"' not in page


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (AdapterLoadingOff("models.NAME.adapter_dirs lists no directory"), 403),
        (AdapterRejected("/adapters/x was made for another base model"), 400),
        (RequestTimeout("not done within request_timeout_s=600"), 504),
    ],
)
async def test_a_refusal_is_told_with_its_reason(
    refusal: DeepseekError, status: int, running: Running
) -> None:
    running.deployments.adapter_refusal = refusal
    response = await running.post(LOAD, lora_name="x", lora_path="/adapters/x")
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["code"], error["message"]) == (refusal.code, refusal.message)


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (LOAD, {"lora_path": "/adapters/x"}, 400, "lora_name"),
        (LOAD, {"lora_name": "x"}, 400, "lora_path"),
        (LOAD, {"lora_name": "x", "lora_path": ""}, 400, "lora_path"),
        (LOAD, {"lora_name": "../x", "lora_path": "/adapters/x"}, 400, "lora_name"),
        (LOAD, {"lora_name": "x\n", "lora_path": "/adapters/x"}, 400, "lora_name"),
        (LOAD, {"lora_name": "x" * 97, "lora_path": "/adapters/x"}, 400, "lora_name"),
        (LOAD, {"lora_name": "x", "lora_path": "/etc"}, 400, "lora_path"),
        (LOAD, {"lora_name": "x", "lora_path": "/adapters/x", "modle": "echo"}, 400, "modle"),
        (LOAD, {"lora_name": "x", "lora_path": "/adapters/x", "model": "none"}, 404, "model"),
        (DROP, {"lora_name": "x"}, 404, "lora_name"),
        (DROP, {"lora_name": "echo"}, 404, "lora_name"),
        (DROP, {"lora_name": "x", "lora_int_id": 3}, 400, "lora_int_id"),
    ],
)
async def test_a_wrong_body_is_refused_with_its_field(
    path: str, body: dict[str, object], status: int, param: str, running: Running
) -> None:
    response = await running.post(path, **body)
    assert response.status_code == status
    assert response.json()["error"]["param"] == param
    assert (await running.http.get(path)).status_code == 405
