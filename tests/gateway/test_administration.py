"""The routes under `/admin`: what they take and answer, and where they are."""

import pytest

from deepseek.core.errors import Unavailable
from deepseek.gateway.settings import GatewaySettings
from tests.gateway.conftest import Running, running_gateway

pytestmark = pytest.mark.server

FILE = {"models": {"served": {"source": "x", "share": 2}}, "pools": {"default": {}}}


async def test_a_deployment_file_is_applied_as_it_came(running: Running) -> None:
    response = await running.http.put("/admin/deployment", json=FILE)
    assert response.status_code == 200
    assert response.json() == {
        "object": "list",
        "data": [{"model": "served", "setting": "share", "before": 1.0, "after": 2.0}],
    }
    # A section that was not sent is not made up.
    assert running.administration.applied == [FILE]


async def test_what_cannot_be_applied_is_refused_in_its_own_words(running: Running) -> None:
    response = await running.http.put("/admin/deployment", json={"models": {"other": {}}})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "models.other: is not served"
    response = await running.http.put("/admin/deployment", json={"model": {}})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")
    running.administration.refusal = Unavailable("its worker restarts", retry_after_s=5)
    response = await running.http.put("/admin/deployment", json=FILE)
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert running.administration.applied == []


async def test_another_method_is_told_the_right_one(running: Running) -> None:
    response = await running.http.post("/admin/deployment", json=FILE)
    assert (response.status_code, response.headers["allow"]) == (405, "PUT")


async def test_decisions_are_shown_with_their_age_and_signals(running: Running) -> None:
    body = (await running.http.get("/admin/decisions/served")).json()
    (decision,) = body["data"]
    assert 90 <= decision.pop("age_s") < 100
    assert decision.pop("at") > 1_700_000_000
    assert decision == {
        "model": "served",
        "scale": "medium",
        "action": "raise-batch-cap",
        "reason": "the queue has grown to 9",
        "signals": {"num_waiting": 9, "oldest_wait_s": 0.25, "temperature_c": None},
    }
    response = await running.http.get("/admin/decisions/org/other")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("name", ["attacker.example:8000", "127.0.0.1.attacker.example", "", "::"])
async def test_a_name_that_was_led_here_does_not_reach_them(running: Running, name: str) -> None:
    for method, path in (("PUT", "/admin/deployment"), ("GET", "/admin/decisions/served")):
        response = await running.http.request(method, path, json=FILE, headers={"host": name})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "route_not_found")
    assert running.administration.applied == []
    assert (await running.http.get("/health/live", headers={"host": name})).status_code == 200


@pytest.mark.parametrize("name", ["localhost", "LocalHost:80", "127.1.2.3:1", "[::1]:8000"])
async def test_every_name_of_this_machine_alone_does(running: Running, name: str) -> None:
    response = await running.http.put("/admin/deployment", json=FILE, headers={"host": name})
    assert response.status_code == 200


async def test_where_they_were_asked_for_any_name_does() -> None:
    async with running_gateway(admin=True) as server:
        headers = {"host": "models.example.org"}
        response = await server.http.put("/admin/deployment", json=FILE, headers=headers)
        assert response.status_code == 200


async def test_where_they_are_off_there_are_no_such_routes() -> None:
    async with running_gateway(admin=False) as server:
        response = await server.http.put("/admin/deployment", json=FILE)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "route_not_found")
        document = (await server.http.get("/openapi.json")).json()
        assert not [path for path in document["paths"] if path.startswith("/admin")]
        assert server.administration.applied == []


@pytest.mark.parametrize(
    ("host", "admin", "expected"),
    [
        ("127.0.0.1", None, True),
        ("127.8.8.8", None, True),
        ("::1", None, True),
        ("localhost", None, True),
        ("0.0.0.0", None, False),  # noqa: S104 - the address that must not have them
        ("::", None, False),
        ("10.0.0.7", None, False),
        ("models.example.org", None, False),
        ("0.0.0.0", True, True),  # noqa: S104
        ("127.0.0.1", False, False),
    ],
)
def test_they_are_there_by_default_only_where_nobody_else_reaches_them(
    host: str, admin: bool | None, expected: bool
) -> None:
    assert GatewaySettings(host=host, admin=admin).is_administered is expected
