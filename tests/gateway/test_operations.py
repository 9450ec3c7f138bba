"""Models, health, metrics, the index, and what every answer carries."""

import logging
import re
from collections.abc import AsyncGenerator

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deepseek.core.errors import CorruptWeights
from deepseek.serving.base import GenerateOptions, TextDelta
from tests.gateway.conftest import Running
from tests.gateway.fakes import FakeGenerator

pytestmark = pytest.mark.server


async def test_the_client_lists_and_retrieves_models(running: Running) -> None:
    models = [model async for model in running.openai.models.list()]
    assert "echo" in {model.id for model in models}
    assert {model.object for model in models} == {"model"}
    model = await running.openai.models.retrieve("echo")
    assert (model.id, model.created) == ("echo", 1_700_000_000)
    slashed = await running.http.get("/v1/models/org/classifier")
    assert slashed.json()["task"] == "classify"
    with pytest.raises(openai.NotFoundError) as caught:
        await running.openai.models.retrieve("nobody")
    assert caught.value.code == "model_not_found"


async def test_health_is_ready_when_every_model_is(running: Running) -> None:
    assert (await running.http.get("/health/live")).json() == {"status": "live"}
    ready = await running.http.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    running.deployments.generators["echo"].reason = "the worker is starting"
    unready = await running.http.get("/health/ready")
    assert (unready.status_code, unready.json()["status"]) == (503, "not_ready")
    (why,) = [m for m in unready.json()["models"] if not m["ready"]]
    assert (why["name"], why["reason"]) == ("echo", "the worker is starting")
    assert (await running.http.get("/health/live")).status_code == 200


async def test_metrics_count_requests_tokens_and_times(running: Running) -> None:
    message = [{"role": "user", "content": "abcd"}]
    for stream in (False, True):
        await running.post("/v1/chat/completions", model="echo", messages=message, stream=stream)
    response = await running.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    route = "/v1/chat/completions"
    assert found["deepseek_requests_total", route, "200", "echo"] == 2
    assert found["deepseek_requests_in_flight", route] == 0
    assert found["deepseek_request_duration_seconds_count", route, "echo"] == 2
    assert found["deepseek_prompt_tokens_total", "echo"] == 8
    assert found["deepseek_completion_tokens_total", "echo"] == 8
    assert found["deepseek_cached_prompt_tokens_total", "echo"] == 4
    assert found["deepseek_time_to_first_token_seconds_count", "echo"] == 2
    assert found["deepseek_inter_token_latency_seconds_count", "echo"] == 6


async def test_the_index_names_every_route_as_json(running: Running) -> None:
    response = await running.http.get("/")
    assert response.headers["content-type"] == "application/json"
    routes = response.json()["routes"]
    assert "POST /v1/chat/completions" in routes
    assert "GET /metrics" in routes
    document = (await running.http.get("/openapi.json")).json()
    described = {f"{m.upper()} {path}" for path, item in document["paths"].items() for m in item}
    assert described == set(routes)


async def test_a_sane_request_id_is_kept_and_another_replaced(running: Running) -> None:
    kept = await running.http.get("/health/live", headers={"x-request-id": "Job-7_a.b:c"})
    assert kept.headers["x-request-id"] == "Job-7_a.b:c"
    for value in (b"", b"a b", b"x" * 129, b"<script>", b"\xe9"):
        response = await running.http.get("/nowhere", headers={b"x-request-id": value})
        assert re.fullmatch(r"req-[0-9a-f]{24}", response.headers["x-request-id"])


async def test_a_fault_of_ours_is_500_without_a_trace_and_logged_with_its_id(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(text: str, options: GenerateOptions) -> AsyncGenerator[TextDelta, None]:
        raise ZeroDivisionError("secret detail")
        yield

    running.deployments.generators["faulty"] = FakeGenerator("faulty", fail)
    response = await running.http.post(
        "/v1/completions",
        json={"model": "faulty", "prompt": "a"},
        headers={"x-request-id": "the-id"},
    )
    assert response.status_code == 500
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "secret" not in response.text
    assert "the-id" in error["message"]
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "the-id" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


async def test_what_the_operator_must_mend_is_not_shown_to_clients(running: Running) -> None:
    refusal = CorruptWeights("/home/ann/models/x: bad header")
    running.deployments.generators["echo"].refusal = refusal
    response = await running.post("/v1/completions", model="echo", prompt="a")
    assert response.status_code == 500
    assert "/home/ann" not in response.text
