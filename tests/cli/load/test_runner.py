"""The load generator against a real server on loopback."""

import asyncio
import itertools
import json

import pytest

from deepseek.cli.load.plan import LoadPlan, LoadTask, PlannedRequest, trace_requests
from deepseek.cli.load.prompts import TokenScale
from deepseek.cli.load.runner import run_load
from deepseek.cli.load.traces import TraceRow
from tests.cli.peer import Peer

pytestmark = pytest.mark.server


def chats(count: int, *, max_tokens: int = 5) -> list[PlannedRequest]:
    return [PlannedRequest(text=f"hello {n}", max_tokens=max_tokens) for n in range(count)]


async def test_a_closed_loop_keeps_its_concurrency_and_counts_tokens(
    peer: tuple[str, Peer],
) -> None:
    url, server = peer
    plan = LoadPlan(requests=chats(12), concurrency=3, extra_body={"ignore_eos": True})
    done: list[int] = []
    report = await run_load(
        plan, url=url, model="chatty", keep_text=True, on_done=lambda r: done.append(1)
    )
    assert (report.num_ok, report.errors, len(done)) == (12, {}, 12)
    assert server.max_running == 3
    assert (report.output_tokens, report.token_counting) == (60, "usage")
    assert report.input_tokens == 12 * 7
    assert (report.ttft.num, report.inter_token.num, report.e2e.num) == (12, 48, 12)
    assert report.send_lag.num == 0
    assert report.records[0].text == " word" * 5
    assert report.records[0].finish_reason == "length"
    assert {body["ignore_eos"] for body in server.bodies} == {True}


async def test_a_request_has_its_own_fields_over_those_of_all(peer: tuple[str, Peer]) -> None:
    url, server = peer
    requests = [PlannedRequest(text="a"), PlannedRequest(text="b", extra_body={"seed": 7})]
    plan = LoadPlan(requests=requests, concurrency=1, extra_body={"seed": 1, "ignore_eos": True})
    await run_load(plan, url=url, model="chatty")
    assert [(body["seed"], body["ignore_eos"]) for body in server.bodies] == [(1, True), (7, True)]


async def test_latencies_are_in_order(peer: tuple[str, Peer]) -> None:
    url, _ = peer
    report = await run_load(LoadPlan(requests=chats(4), concurrency=2), url=url, model="chatty")
    for record in report.records:
        times = [record.sent_s, *record.token_times_s, record.done_s]
        assert times == sorted(times)
    assert report.ttft.p50_ms <= report.ttft.p90_ms <= report.ttft.p99_ms <= report.e2e.max_ms


async def test_arrivals_are_kept_whatever_is_still_under_way(peer: tuple[str, Peer]) -> None:
    url, server = peer
    rows = [TraceRow(arrival_s=0.05 * n, input_tokens=10, output_tokens=100) for n in range(5)]
    plan = LoadPlan(requests=trace_requests(rows, scale=TokenScale()))
    report = await run_load(plan, url=url, model="chatty")
    assert report.num_ok == 5
    assert server.max_running > 1, (
        "each answer takes 200 ms: waiting for one would be a closed loop"
    )
    gaps = [b - a for a, b in itertools.pairwise(server.arrivals_s)]
    assert sum(gaps) >= 0.2 - 0.02
    assert report.send_lag.num == 5


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("busy", "429 overloaded"),
        ("cut", "stream ended early"),
        ("failing", "error in the stream: worker_crashed"),
        ("page", "not an event stream"),
        ("garbage", "not the API's JSON"),
    ],
)
async def test_failures_are_counted_by_kind(peer: tuple[str, Peer], model: str, kind: str) -> None:
    url, _ = peer
    report = await run_load(LoadPlan(requests=chats(3), concurrency=3), url=url, model=model)
    assert report.errors == {kind: 3}
    assert (report.num_ok, report.output_tokens_per_s, report.e2e.num) == (0, 0.0, 0)


async def test_a_stream_with_a_finish_reason_is_complete_without_done(
    peer: tuple[str, Peer],
) -> None:
    url, _ = peer
    report = await run_load(LoadPlan(requests=chats(3), concurrency=3), url=url, model="undone")
    assert (report.num_ok, report.errors) == (3, {})


async def test_chunks_stand_for_tokens_where_the_server_sends_no_usage(
    peer: tuple[str, Peer],
) -> None:
    url, _ = peer
    report = await run_load(LoadPlan(requests=chats(3), concurrency=1), url=url, model="no-usage")
    assert (report.output_tokens, report.token_counting) == (15, "chunks")


@pytest.mark.parametrize("task", [LoadTask.EMBED, LoadTask.CLASSIFY])
async def test_encoders_are_loaded_by_the_same_plan(peer: tuple[str, Peer], task: LoadTask) -> None:
    url, server = peer
    requests = [PlannedRequest(text="two words") for _ in range(6)]
    plan = LoadPlan(requests=requests, task=task, concurrency=2)
    report = await run_load(plan, url=url, model="vectors")
    assert (report.num_ok, report.input_tokens, report.output_tokens) == (6, 42, 0)
    assert report.token_counting == "usage"  # noqa: S105
    assert server.bodies[0] == {"model": "vectors", "input": "two words"}


async def test_a_slow_answer_is_a_timeout_and_its_connection_is_closed(
    peer: tuple[str, Peer],
) -> None:
    url, server = peer
    plan = LoadPlan(requests=chats(2), concurrency=2)
    report = await run_load(plan, url=url, model="endless", timeout_s=0.2)
    assert report.errors == {"timeout": 2}
    for _ in range(200):
        if server.num_abandoned == 2:
            break
        await asyncio.sleep(0.01)
    assert server.num_abandoned == 2


async def test_an_absent_server_is_an_error_kind_not_an_exception() -> None:
    plan = LoadPlan(requests=chats(2), concurrency=1)
    report = await run_load(plan, url="http://127.0.0.1:1", model="m")
    assert report.errors == {"connection refused": 2}


async def test_the_report_is_json(peer: tuple[str, Peer]) -> None:
    url, _ = peer
    report = await run_load(LoadPlan(requests=chats(2), concurrency=1), url=url, model="chatty")
    written = json.loads(json.dumps(report.to_json()))
    assert written["ttft"].keys() >= {"mean_ms", "p50_ms", "p90_ms", "p99_ms"}
    assert "records" not in written
