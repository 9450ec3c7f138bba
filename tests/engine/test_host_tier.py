"""Models that leave a GPU for the host's memory: parked instead of evicted, woken, not loaded."""

import time

import pytest

from deepseek.core.errors import ConfigurationError
from deepseek.core.qos import QoS
from deepseek.core.requests import Task
from deepseek.core.residency import Residency
from deepseek.core.wire import DropAdapter, LoadAdapter, ModelChanged, ModelSpec, WorkerSpec
from deepseek.engine.adapter_commands import AdapterCommands
from deepseek.engine.base import Parkable
from deepseek.engine.starting import StartedModels, make_residents
from tests.engine.resident_pool import MB, MODEL_BYTES, Pool, pool


def actions(p: Pool, name: str) -> list[str]:
    return [action for model, action in p.told() if model == name]


def test_a_model_that_makes_room_is_parked_and_comes_back_without_being_loaded() -> None:
    with pool("a", "b", num_fit=1, num_in_host=2) as p:
        p.bring("a")
        p.bring("b")
        assert (p.all_in(Residency.HOST), p.ready()) == ({"a"}, {"b"})
        p.told()
        p.bring("a")
        assert (p.all_in(Residency.HOST), p.ready()) == ({"b"}, {"a"})
        assert [model.name for model in p.loaded] == ["a", "b"], "each from its files once"
        assert p.told() == [("b", "evict"), ("a", "load"), ("a", "loaded")]
        states = [e.model.residency for e in p.events if isinstance(e, ModelChanged)][-3:]
        assert states == [Residency.HOST, Residency.LOADING, Residency.READY]


def test_a_request_for_a_parked_model_waits_with_its_arrival_until_the_copy_is_there() -> None:
    with pool("a", "b", num_fit=1, num_in_host=2) as p:
        p.bring("a")
        p.bring("b")
        assert p.ask("a") is None
        asked_s = p.now_s
        assert not p.models["a"].engine.has_work, "it cannot be stepped"
        p.look(after_s=0.5)
        assert p.places["a"].state is Residency.LOADING
        assert p.models["a"].load(p.now_s).oldest_wait_s == p.now_s - asked_s
        p.take()
        p.serve("a")
        report = p.residents.described(p.models["a"].load(p.now_s))
        assert (report.num_misses, report.num_loads, report.num_evictions) == (2, 2, 1)
        assert (report.weights_bytes, report.host_weights_bytes) == (MODEL_BYTES, MODEL_BYTES)
        (away,) = [p.residents.described(p.models["b"].load(p.now_s))]
        assert (away.residency, away.weights_bytes) == (Residency.HOST, 0)
        assert away.host_weights_bytes == MODEL_BYTES


def test_a_parked_engine_refuses_to_be_stepped() -> None:
    with pool("a", "b", num_fit=1, num_in_host=2) as p:
        p.bring("a")
        p.bring("b")
        p.bring("a")
        parked = p.places["b"].parked
        assert isinstance(parked, Parkable)
        with pytest.raises(RuntimeError, match="not on the device"):
            parked.step()


def test_a_full_host_tier_gives_up_what_is_worth_least() -> None:
    with pool("a", "b", "c", num_fit=1, num_in_host=2) as p:
        for name in "abc":
            p.bring(name)
        # Policies prefer what is asked for; somebody has to be on disk, and nobody twice.
        assert p.ready() == {"c"}
        (gone,) = p.all_in(Residency.DISK)
        (kept,) = p.all_in(Residency.HOST)
        assert {gone, kept} == {"a", "b"}
        assert p.memories.on_device == {"c"}
        assert "evict" in actions(p, gone)
        p.bring(gone)
        assert [model.name for model in p.loaded] == ["a", "b", "c", gone]


def test_both_tiers_together_hold_more_models_than_either() -> None:
    with pool("a", "b", "c", num_fit=2, num_in_host=1) as p:
        for name in "abc":
            p.bring(name)
        assert len(p.ready()) == 2
        assert len(p.memories.in_host) == 1
        assert p.memories.on_device == p.ready()


def test_a_copy_behind_the_device_gives_way_and_its_model_stays() -> None:
    with pool("a", "b", num_fit=2, num_in_host=1) as p:
        p.bring("a")
        assert p.memories.in_host == {"a"}
        p.bring("b")
        assert p.ready() == {"a", "b"}
        assert p.memories.in_host == {"b"}
        assert not p.places["a"].has_host_copy
        p.ask("a")
        p.serve("a")
        assert p.residents.described(p.models["a"].load(p.now_s)).host_weights_bytes == 0


def test_neither_work_nor_a_promise_is_parked() -> None:
    with pool("a", "b", num_fit=1, num_in_host=2) as p:
        p.ask("a")
        p.look()
        p.take()  # and not served
        p.ask("b")
        p.look(after_s=1.0)
        assert p.ready() == {"a"}
        p.serve("a")
        p.look(after_s=1.0)
        p.take()
        assert (p.all_in(Residency.HOST), p.ready()) == ({"a"}, {"b"})
    with pool("a", num_fit=1, num_in_host=1, qos=QoS(reserved_share=0.4)) as p:
        p.bring("a")
        assert p.memories.in_host == set(), "what never leaves needs no copy"


def test_an_idle_model_leaves_the_device_and_waits_in_the_host_tier() -> None:
    with pool("a", num_in_host=1, keep_alive_s=10.0, preload_bytes_per_s=1000 * MB) as p:
        p.bring("a")
        p.look(is_idle=True, after_s=10.5)
        assert p.all_in(Residency.HOST) == {"a"}
        p.look(is_idle=True, after_s=1.5)
        assert p.all_in(Residency.HOST) == {"a"}, "it comes back on demand only"
        p.bring("a")
        assert len(p.loaded) == 1


def test_a_wake_ahead_of_requests_ends_at_its_next_piece_for_one_that_is_waited_for() -> None:
    idle = {"keep_alive_s": 1.0, "preload_bytes_per_s": 5 * MB}
    with pool("a", "b", num_fit=1, num_in_host=2, **idle) as p:
        p.bring("a")
        p.bring("b")
        p.told()
        p.look(is_idle=True, after_s=2.0)
        assert p.told() == [("b", "evict"), ("a", "preload")]
        p.ask("b")
        started_s = time.monotonic()
        p.look()
        assert p.told() == [("a", "cancel-preload")]
        p.take()
        assert time.monotonic() - started_s < 0.5, "not at the end of the piece's two seconds"
        assert p.all_in(Residency.HOST) == {"a"}
        p.take()
        assert p.ready() == {"b"}
        assert [model.name for model in p.loaded] == ["a", "b"]


def test_the_host_tier_is_filled_ahead_where_there_is_a_way_to_it() -> None:
    with pool("a", "b", num_fit=2, num_in_host=2, preload_bytes_per_s=1000 * MB) as p:
        p.places["a"].num_bytes = p.places["b"].num_bytes = 2 * MODEL_BYTES + 1
        p.look(is_idle=True, after_s=2.0)
        assert p.told() == [], "there is no room for it anywhere"
    with pool("a", "b", num_fit=1, num_in_host=2, preload_bytes_per_s=1000 * MB) as p:
        p.look(is_idle=True, after_s=2.0)
        p.take()
        assert len(p.ready()) == 1, "the device first, and by it the host tier"
        p.has_way_to_host = False
        p.look(is_idle=True, after_s=2.0)
        assert len(p.loaded) == 1
        p.has_way_to_host = True
        p.memories.num_on_device = 2  # beside what is budgeted
        p.look(is_idle=True, after_s=2.0)
        p.take()
        assert (len(p.ready()), len(p.all_in(Residency.HOST))) == (1, 1)
        assert p.memories.on_device == p.ready()


def test_a_device_without_memory_says_so_and_loses_nothing() -> None:
    with pool("a", "b", num_fit=1, num_in_host=2) as p:
        p.bring("a")
        p.bring("b")
        p.memories.num_on_device = 0
        p.ask("a")
        p.look()
        (failed,) = p.take()
        assert failed.code == "model_unavailable"
        assert "lower the pool's weights_bytes or kv_cache_bytes" in failed.message
        assert p.places["a"].state is Residency.HOST
        p.memories.num_on_device = 1
        p.bring("a")
        assert len(p.loaded) == 2


def test_waking_is_promised_by_what_it_took_and_not_by_what_reading_takes() -> None:
    with pool("a", "b", num_fit=1, num_in_host=2, qos=QoS(ttft_s=0.3)) as p:
        assert p.ask("a") is None
        p.look()
        p.take()
        p.serve("a")
        failed = p.ask("b")  # reading took 0.5 s
        assert failed is not None
        assert failed.code == "model_loading"
        p.look()
        p.take()
        assert p.ready() == {"b"}
        assert p.ask("a") is None, "it is in the host tier"


def test_an_adapter_dropped_while_its_model_is_parked_is_not_there_afterwards() -> None:
    with pool("a", "b", num_fit=1, num_in_host=2) as p:
        p.models["a"].adapters.update({"x": "/x", "y": "/y"})
        p.bring("a")
        p.bring("b")
        drop = DropAdapter(id=1, model="a", name="x")
        assert not p.residents.holds_back(drop, now_s=p.now_s)
        AdapterCommands(p.models, put=p.inbox.put, send=p.events.append).drop(drop)
        load = LoadAdapter(id=2, model="a", name="z", path="/z")
        assert p.residents.holds_back(load, now_s=p.now_s), "it brings its model back"
        p.look()
        p.take()
        assert p.inbox.get(timeout=1) == load
        changed = [e.model for e in p.events if isinstance(e, ModelChanged)][-1]
        assert [(a.name, a.error) for a in changed.adapters] == [("y", None)]


def test_a_host_tier_beside_no_gpu_is_refused() -> None:
    model = ModelSpec(name="m", path="/m", task=Task.GENERATE, min_resident=0)
    spec = WorkerSpec(
        pool="p", socket_path="", device="auto", models=[model], host_weights_bytes=2**30
    )
    with pytest.raises(ConfigurationError, match=r"pools\.p\.host_weights_bytes: this pool runs"):
        make_residents(StartedModels(), spec, device="cpu", commands=None, send=print)  # type: ignore[arg-type]
