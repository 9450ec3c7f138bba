"""Which adapters a worker's successor gets, and which directories a client may name."""

import os
from pathlib import Path

import pytest

from deepseek.core.errors import AdapterRejected
from deepseek.core.requests import Task
from deepseek.core.wire import AdapterInfo, AdapterSpec, ModelInfo, ModelSpec, WorkerSpec
from deepseek.serving.adapters import AdapterRoster, find_below


def adapter(name: str) -> AdapterSpec:
    return AdapterSpec(name=name, path=f"/at/{name}")


def worker_spec() -> WorkerSpec:
    models = [
        ModelSpec(name="a", path="/a", task=Task.GENERATE, adapters=[adapter("x"), adapter("y")]),
        ModelSpec(name="b", path="/b", task=Task.GENERATE),
    ]
    return WorkerSpec(pool="p", socket_path="", device="cpu", models=models)


def info(name: str, *adapters: AdapterInfo) -> ModelInfo:
    return ModelInfo(name=name, max_model_len=9, vocab_size=9, adapters=list(adapters))


def test_a_new_worker_gets_what_was_loaded_and_not_what_was_dropped() -> None:
    spec = worker_spec()
    roster = AdapterRoster(spec.models)
    assert roster.applied_to(spec) == spec
    roster.loaded("b", adapter("z"))
    roster.loaded("a", AdapterSpec(name="x", path="/elsewhere"))
    roster.dropped("a", "y")
    models = roster.applied_to(spec).models
    assert models[0].adapters == [AdapterSpec(name="x", path="/elsewhere")]
    assert models[1].adapters == [adapter("z")]
    assert spec == worker_spec()


def test_an_adapter_that_a_worker_could_not_load_has_a_fault_until_it_is_loaded() -> None:
    spec = worker_spec()
    roster = AdapterRoster(spec.models)
    gone = AdapterInfo(name="x", error="/at/x cannot be read")
    roster.worker_started([info("a", gone, AdapterInfo(name="y")), info("b")])
    assert roster.of("a")["x"].fault == "adapter 'x' could not be loaded: /at/x cannot be read"
    assert roster.of("a")["y"].fault == ""
    assert roster.applied_to(spec) == spec, "the next worker tries again"
    roster.loaded("a", adapter("x"))
    assert roster.of("a")["x"].fault == ""


def test_a_worker_that_says_nothing_of_an_adapter_has_not_loaded_it() -> None:
    roster = AdapterRoster(worker_spec().models)
    roster.worker_started([info("a", AdapterInfo(name="y")), info("b")])
    assert "takes no adapters" in roster.of("a")["x"].fault


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    (tmp_path / "allowed" / "sql" / "v1").mkdir(parents=True)
    (tmp_path / "allowed" / "file").touch()
    (tmp_path / "allowed-too").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "allowed" / "way-out").symlink_to(tmp_path / "secret")
    (tmp_path / "allowed" / "latest").symlink_to("sql/v1")
    (tmp_path / "allowed" / "circle").symlink_to("circle")
    (tmp_path / "entrance").symlink_to("allowed")
    return tmp_path / "allowed"


@pytest.mark.parametrize("path", ["sql/v1", "./sql/../sql/v1", "latest", "{root}/allowed/sql/v1"])
def test_a_directory_below_is_found_whatever_way_it_is_written(path: str, allowed: Path) -> None:
    path = path.format(root=allowed.parent)
    for directory in (allowed, allowed.parent / "entrance"):
        found = find_below(path, [allowed.parent / "nowhere", directory])
        assert found == (allowed / "sql" / "v1").resolve()


@pytest.mark.parametrize(
    "path",
    [
        *("../secret", "way-out", "sql/../../secret", "{root}/secret", "/etc", "/", ".."),
        *("{root}/allowed-too", "../allowed-too", "nowhere", "file", "circle", "sql\0v1"),
        *("x" * 5000, "sql/" * 2000),
    ],
)
def test_nothing_else_is_found_and_all_of_it_in_the_same_words(path: str, allowed: Path) -> None:
    with pytest.raises(AdapterRejected) as caught:
        find_below(path.format(root=allowed.parent), [allowed])
    assert caught.value.param == "lora_path"
    assert caught.value.message == (
        "lora_path: no such directory below those that models.NAME.adapter_dirs allows"
    )


def test_without_directories_nothing_is_found(allowed: Path) -> None:
    with pytest.raises(AdapterRejected):
        find_below(os.fspath(allowed), [])
