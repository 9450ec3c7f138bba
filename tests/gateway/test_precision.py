"""The field `precision`, the header that answers it, and what is counted of both."""

from typing import Any

import pytest

from deepseek.core.precision import Precision
from deepseek.scheduling.precision.policy import RequestKind
from tests.gateway.conftest import Running

pytestmark = pytest.mark.server

CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "abc"}]})
TEXT = ("/v1/completions", {"prompt": ["abc", "d"]})


@pytest.mark.parametrize("route", [CHAT, TEXT], ids=["chat", "completion"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("named", "told"), [("int4", "int4"), ("int8", "int8"), (None, "int8")])
async def test_the_answers_header_tells_what_it_was_computed_in(
    running: Running, route: tuple[str, Any], stream: bool, named: str | None, told: str
) -> None:
    path, body = route
    response = await running.post(
        path, model="switching", stream=stream, precision=named, max_tokens=9, **body
    )
    assert response.status_code == 200
    assert response.headers["x-deepseek-precision"] == told
    (options,) = running.deployments.generators["switching"].asked
    assert options.precision is Precision(told)


async def test_a_model_of_one_precision_has_no_header_and_refuses_the_field(
    running: Running,
) -> None:
    path, body = CHAT
    plain = await running.post(path, model="echo", **body)
    assert "x-deepseek-precision" not in plain.headers
    assert running.deployments.generators["echo"].asked[0].precision is None
    refused = await running.post(path, model="echo", precision="int8", **body)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "precision")
    assert len(running.deployments.generators["echo"].asked) == 1


@pytest.mark.parametrize(
    ("field", "value"), [("precision", "fp16"), ("precision", 4), ("service_tier", "fast")]
)
async def test_a_value_that_is_none_is_refused_by_name(
    running: Running, field: str, value: Any
) -> None:
    path, body = CHAT
    response = await running.post(path, model="switching", **{field: value}, **body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field


async def test_the_policy_is_told_what_kind_of_request_it_is(running: Running) -> None:
    path, body = TEXT
    await running.post(path, model="switching", max_tokens=7, service_tier="flex", **body)
    assert running.deployments.generators["switching"].kinds == [
        RequestKind(num_prompt_tokens=3, max_answer_tokens=7, service_tier="flex")
    ]


async def test_tokens_and_requests_are_counted_by_precision(running: Running) -> None:
    path, body = CHAT
    for named in ("int4", "int4", None):
        await running.post(path, model="switching", precision=named, **body)
    await running.post(path, model="echo", **body)
    page = running.metrics.render().decode().splitlines()
    assert [line for line in page if line.startswith("deepseek_precision_")] == [
        'deepseek_precision_tokens_total{model="switching",precision="int4"} 6.0',
        'deepseek_precision_tokens_total{model="switching",precision="int8"} 3.0',
        'deepseek_precision_requests_total{model="switching",precision="int4",reason="named"} 2.0',
        'deepseek_precision_requests_total{model="switching",precision="int8",reason="default"} '
        "1.0",
    ]
