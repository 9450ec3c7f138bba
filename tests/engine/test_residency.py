"""Which models are in memory: what is loaded when, what makes room, what is told."""

import threading
import time

import pytest

from deepseek.core.errors import CorruptWeights
from deepseek.core.qos import QoS
from deepseek.core.residency import Residency
from deepseek.core.wire import (
    DropAdapter,
    LoadAdapter,
    ModelChanged,
)
from deepseek.engine.load_pace import LoadCancelled, LoadPace
from deepseek.engine.model_loader import ModelRead
from tests.engine.resident_pool import MB, MODEL_BYTES, pool


def test_a_request_waits_for_its_model_and_is_served_with_its_arrival() -> None:
    with pool("a") as p:
        assert p.ask("a") is None
        asked_s = p.now_s
        assert p.ask("a") is None
        p.look()
        (load,) = [p.models["a"].load(p.now_s + 1.0)]
        assert (load.num_waiting, load.oldest_wait_s) == (2, p.now_s + 1.0 - asked_s)
        assert p.take() == []
        assert p.models["a"].engine.has_work
        p.serve("a")
        report = p.residents.described(p.models["a"].load(p.now_s))
        assert (report.num_misses, report.num_hits, report.num_loads) == (2, 0, 1)
        assert report.residency is Residency.READY
        assert report.weights_bytes == MODEL_BYTES
        assert p.told() == [("a", "load"), ("a", "loaded")]
        states = [e.model.residency for e in p.events if isinstance(e, ModelChanged)]
        assert states == [Residency.LOADING, Residency.READY]


def test_a_load_that_somebody_waits_for_ends_one_that_nobody_does() -> None:
    with pool("a", "b", preload_bytes_per_s=5 * MB) as p:  # a layer a second
        p.look(is_idle=True)
        ahead = p.told()
        assert [action for _, action in ahead] == ["preload"]
        other = "b" if ahead[0][0] == "a" else "a"
        p.ask(other)
        started_s = time.monotonic()
        p.look()
        assert p.told() == [(ahead[0][0], "cancel-preload")]
        p.take()
        assert time.monotonic() - started_s < 0.5, "not at the end of the layer's second"
        assert p.told() == [(other, "load")]
        p.take()
        assert p.ready() == {other}


def test_a_preload_that_somebody_begins_to_wait_for_goes_on_at_full_speed() -> None:
    with pool("a", preload_bytes_per_s=1 * MB) as p:  # 100 seconds
        p.look(is_idle=True)
        assert p.ask("a") is None
        p.look()
        p.take()
        p.serve("a")
        assert p.told() == [("a", "preload"), ("a", "loaded")]
        assert len(p.loaded) == 1
        assert p.residents.described(p.models["a"].load(p.now_s)).load_s == 0.5


def test_nothing_is_loaded_ahead_of_a_busy_device_or_without_a_rate() -> None:
    with pool("a", preload_bytes_per_s=MODEL_BYTES) as p:
        p.look(is_idle=False, after_s=2.0)
        assert p.told() == []
        p.look(is_idle=True, after_s=2.0)
        assert p.told() == [("a", "preload")]
    with pool("a") as p:
        p.look(is_idle=True, after_s=2.0)
        assert p.told() == []


def test_idle_models_fill_the_room_and_make_room_for_what_is_asked_for() -> None:
    with pool("a", "b", "c", preload_bytes_per_s=1000 * MB) as p:
        for _ in range(2):
            p.look(is_idle=True, after_s=2.0)
            p.take()
        assert len(p.ready()) == 2
        (absent,) = {"a", "b", "c"} - p.ready()
        p.told()
        p.bring(absent)
        assert len(p.ready()) == 2
        assert absent in p.ready()
        assert [action for _, action in p.told()] == ["evict", "load", "loaded"]


def test_neither_work_nor_a_promise_is_evicted() -> None:
    with pool("a", "b", num_fit=1) as p:
        p.ask("a")
        p.look()
        p.take()  # and not served
        p.ask("b")
        p.look(after_s=1.0)
        assert p.ready() == {"a"}
        p.serve("a")
        p.look(after_s=1.0)
        p.take()
        assert p.ready() == {"b"}
    with pool("a", "b", num_fit=1, qos=QoS(reserved_share=0.4)) as p:
        p.bring("a")
        failed = p.ask("b")
        assert failed is not None
        assert failed.code == "model_unavailable"
        assert "0 MiB are not kept for others" in failed.message


def test_an_adapter_being_read_keeps_its_model() -> None:
    with pool("a", keep_alive_s=1.0) as p:
        p.bring("a")
        p.models["a"].num_readers += 1
        p.look(after_s=5.0)
        assert p.ready() == {"a"}
        p.models["a"].num_readers -= 1
        p.look()
        assert p.ready() == set()


def test_what_left_for_being_idle_comes_back_on_demand_only() -> None:
    with pool("a", keep_alive_s=10.0, preload_bytes_per_s=1000 * MB) as p:
        p.bring("a")
        p.look(is_idle=True, after_s=9.0)
        assert p.ready() == {"a"}
        p.look(is_idle=True, after_s=1.5)
        p.look(is_idle=True, after_s=1.5)
        assert [action for _, action in p.told()] == ["load", "loaded", "evict"]
        p.bring("a")
        assert p.ready() == {"a"}


def test_a_request_that_cannot_be_in_time_begins_the_load_and_is_told_when_it_ends() -> None:
    with pool("a", "b", num_fit=1, qos=QoS(ttft_s=0.1)) as p:
        failed = p.ask("a")
        assert failed is not None
        assert (failed.code, failed.retry_after_s) == ("model_loading", 1)
        p.look()
        p.take()
        assert p.ready() == {"a"}
        assert p.ask("a") is None
        p.serve("a")
    with pool("a", qos=QoS(ttft_s=0.3)) as p:
        assert p.ask("a") is None


def test_what_a_load_is_expected_to_take_is_what_loads_have_taken() -> None:
    with pool("a", "b", num_fit=1, qos=QoS(ttft_s=0.3)) as p:
        p.bring("a")  # 100 MB at 400 MB/s were expected to take 0.25 s, and took 0.5
        failed = p.ask("b")
        assert failed is not None
        assert "is being loaded, for about 0.4 s more" in failed.message


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (CorruptWeights("/at/a: damaged"), "model 'a' could not be loaded: /at/a: damaged"),
        (ZeroDivisionError(), "model 'a' could not be loaded: engine_fault: ZeroDivisionError"),
    ],
)
def test_a_load_that_fails_answers_all_who_wait_and_is_tried_again(
    fault: Exception, told: str
) -> None:
    with pool("a", preload_bytes_per_s=MODEL_BYTES) as p:
        p.fault = fault
        p.ask("a")
        p.ask("a")
        command = LoadAdapter(id=77, model="a", name="x", path="/x")
        assert p.residents.holds_back(command, now_s=p.now_s)
        p.look()
        failed = p.take()
        assert [(f.id, f.code, f.message) for f in failed] == [
            (number, "model_unavailable", told) for number in (1, 2, 77)
        ]
        p.fault = None
        p.look(is_idle=True, after_s=2.0)
        assert p.told()[-1] == ("a", "load-failed"), "not tried ahead of a request"
        p.bring("a")
        assert p.ready() == {"a"}


def test_commands_for_an_absent_model_wait_for_it_or_do_not_need_it() -> None:
    with pool("a") as p:
        load = LoadAdapter(id=1, model="a", name="x", path="/x")
        drop = DropAdapter(id=2, model="a", name="x")
        assert not p.residents.holds_back(drop, now_s=p.now_s)
        assert p.residents.holds_back(load, now_s=p.now_s)
        p.look()
        assert p.residents.holds_back(drop, now_s=p.now_s), "it is being loaded with what it has"
        p.take()
        assert [p.inbox.get(timeout=1), p.inbox.get(timeout=1)] == [load, drop]
        assert not p.residents.holds_back(load, now_s=p.now_s)


def test_a_model_is_loaded_with_the_adapters_it_has_now() -> None:
    with pool("a") as p:
        p.models["a"].adapters["x"] = "/x"
        p.bring("a")
        assert [(a.name, a.path) for a in p.loaded[0].adapters] == [("x", "/x")]


def test_the_platform_keeps_what_it_knows_of_a_model_that_left() -> None:
    with pool("a", keep_alive_s=1.0) as p:
        p.bring("a")
        p.look(after_s=2.0)
        last = p.events[-1]
        assert isinstance(last, ModelChanged)
        assert (last.model.residency, last.model.max_model_len) == (Residency.DISK, 9)


def test_the_end_of_the_worker_ends_a_load() -> None:
    with pool("a", preload_bytes_per_s=1 * MB) as p:  # 100 seconds
        p.look(is_idle=True)
        p.residents.close()
        read = p.inbox.get(timeout=5)
        assert isinstance(read, ModelRead)
        assert isinstance(read.outcome.exception(), LoadCancelled)


def test_a_cancelled_load_ends_within_20_ms_also_while_it_waits_for_its_rate() -> None:
    latencies_s: list[float] = []
    for _ in range(50):
        pace = LoadPace(bytes_per_s=1.0, total_bytes=1000 * MB)
        ended_s: list[float] = []

        def load(pace: LoadPace = pace, ended_s: list[float] = ended_s) -> None:
            try:
                while True:
                    pace.advance(10 * MB)
            except LoadCancelled:
                ended_s.append(time.monotonic())

        thread = threading.Thread(target=load)
        thread.start()
        cancelled_s = time.monotonic()
        pace.cancel()
        thread.join(timeout=5)
        latencies_s.append(ended_s[0] - cancelled_s)
    assert sorted(latencies_s)[45] < 0.02


def test_a_pace_lets_through_what_its_rate_allows() -> None:
    pace = LoadPace(bytes_per_s=200 * MB, total_bytes=80 * MB)
    started_s = time.monotonic()
    for _ in range(10):
        pace.advance(8 * MB)
    assert time.monotonic() - started_s > 0.8 * (80 - 16) / 200
    assert pace.part == 1.0
