"""The cache under killed, concurrent and space-less conversions, in real processes."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from deepseek.core.errors import (
    ConfigurationError,
    CorruptWeights,
    ModelSourceError,
    StorageFull,
)
from deepseek.core.requests import Task
from deepseek.weights.cache import ModelCache
from deepseek.weights.child_process import environment_of_own_modules
from deepseek.weights.progress import SilentProgress
from deepseek.weights.store.collection import collect_garbage
from tests.weights.gguf_files import write_gguf

SILENT = SilentProgress()


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "home")


def hidden_files(cache: ModelCache) -> list[str]:
    return sorted(entry.name for entry in cache.path("x").parent.iterdir() if entry.name[0] == ".")


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DEEPSEEK_HOME", raising=False)
    assert ModelCache.default().path("m") == tmp_path / ".cache" / "deepseek" / "models" / "m"
    monkeypatch.setenv("DEEPSEEK_HOME", "~/elsewhere")
    assert ModelCache.default().root == tmp_path / "elsewhere"


def test_an_absent_cache_is_empty_and_has_room(cache: ModelCache) -> None:
    assert cache.list() == []
    assert "m" not in cache
    assert cache.free_bytes > 0


def test_a_directory_is_registered_without_copying(tiny_llama_dir: Path, cache: ModelCache) -> None:
    path = cache.add_path("mine", tiny_llama_dir)
    assert path.resolve() == tiny_llama_dir.resolve()
    (model,) = cache.list()
    assert (model.name, model.task, model.is_link) == ("mine", Task.GENERATE, True)
    assert model.path == tiny_llama_dir
    assert model.size_bytes > 100_000


def test_removing_a_registered_directory_leaves_its_files(
    tiny_llama_dir: Path, cache: ModelCache
) -> None:
    before = sorted(file.name for file in tiny_llama_dir.iterdir())
    cache.add_path("mine", tiny_llama_dir)
    cache.remove("mine")
    assert sorted(file.name for file in tiny_llama_dir.iterdir()) == before
    assert cache.list() == []


def test_a_copy_outlives_its_source(
    tiny_llama_dir: Path, tmp_path: Path, cache: ModelCache
) -> None:
    source = Path(shutil.copytree(tiny_llama_dir, tmp_path / "source"))
    path = cache.add_path("mine", source, copy=True)
    shutil.rmtree(source)
    (model,) = cache.list()
    assert (model.is_link, model.error, model.path) == (False, None, path)
    cache.remove("mine")
    assert not path.exists()
    assert hidden_files(cache) == [".mine.lock"]


def test_what_is_in_the_chunk_store_is_not_put_there_again(
    tiny_llama_dir: Path, cache: ModelCache
) -> None:
    path = cache.add_chunks("mine", tiny_llama_dir)
    with pytest.raises(ModelSourceError, match="register it without --chunks"):
        cache.add_chunks("other", path)
    with pytest.raises(ModelSourceError, match="register it without --copy"):
        cache.add_path("other", path, copy=True)
    assert cache.add_path("other", path).resolve() == path
    assert [(model.name, model.error) for model in cache.list()] == [
        ("mine", None),
        ("other", None),
    ]
    with pytest.raises(ModelSourceError, match="deepseek models remove mine"):
        cache.add_chunks("mine", tiny_llama_dir)


def test_a_cache_may_move_with_its_chunks(
    tiny_llama_dir: Path, tmp_path: Path, cache: ModelCache
) -> None:
    cache.add_chunks("mine", tiny_llama_dir)
    cache.root.rename(tmp_path / "elsewhere")
    moved = ModelCache(tmp_path / "elsewhere")
    assert [model.error for model in moved.list()] == [None]
    collect_garbage(moved.chunk_store, progress=SILENT)
    assert [model.error for model in moved.list()] == [None]


def test_only_weights_stay_behind_at_an_import(
    tiny_llama_dir: Path, tmp_path: Path, cache: ModelCache
) -> None:
    source = Path(shutil.copytree(tiny_llama_dir, tmp_path / "source"))
    for name in ("pytorch_model.bin", "onnx/model.onnx", "2_Dense/model.safetensors", ".git/x"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"x")
    path = cache.add_chunks("mine", source)
    names = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    before = {file.name for file in tiny_llama_dir.iterdir()} - {"model.safetensors"}
    assert names == {*before, "model.chunks.json", "2_Dense/model.safetensors"}


def test_cached_files_are_readable_as_the_umask_allows(
    tiny_llama_dir: Path, cache: ModelCache
) -> None:
    umask = os.umask(0o027)
    try:
        path = cache.add_path("mine", tiny_llama_dir, copy=True)
    finally:
        os.umask(umask)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()}
    assert modes == {0o640}


def test_a_name_is_taken_once(tiny_llama_dir: Path, tiny_bert_dir: Path, cache: ModelCache) -> None:
    cache.add_path("mine", tiny_llama_dir)
    with pytest.raises(ModelSourceError, match="deepseek models remove mine"):
        cache.add_path("mine", tiny_bert_dir)
    assert cache.path("mine").resolve() == tiny_llama_dir.resolve()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", ".hidden", "a b", "ä", "x" * 129])
def test_a_name_that_is_no_file_name_is_refused(
    tiny_llama_dir: Path, cache: ModelCache, name: str
) -> None:
    with pytest.raises(ModelSourceError, match="cannot be a model's name"):
        cache.add_path(name, tiny_llama_dir)


def test_a_broken_directory_is_not_registered(tmp_path: Path, cache: ModelCache) -> None:
    with pytest.raises(ModelSourceError, match=r"no config\.json"):
        cache.add_path("mine", tmp_path)
    assert "mine" not in cache


def test_a_directory_that_broke_later_is_listed_with_its_fault(
    tiny_llama_dir: Path, tmp_path: Path, cache: ModelCache
) -> None:
    source = Path(shutil.copytree(tiny_llama_dir, tmp_path / "source"))
    cache.add_path("mine", source)
    shutil.rmtree(source)
    (model,) = cache.list()
    assert model.error is not None
    assert "does not exist" in model.error
    assert (model.task, model.size_bytes) == (None, 0)
    cache.remove("mine")


def test_removing_what_is_not_there_names_what_is(tiny_llama_dir: Path, cache: ModelCache) -> None:
    cache.add_path("mine", tiny_llama_dir)
    with pytest.raises(ModelSourceError, match="no model 'other' in the cache; it holds mine"):
        cache.remove("other")


def test_a_build_that_fails_leaves_nothing(cache: ModelCache) -> None:
    def fill(directory: Path) -> None:
        (directory / "half").write_text("x")
        raise CorruptWeights("no")

    with pytest.raises(CorruptWeights):
        cache.build("mine", fill, needed_bytes=1, progress=SILENT)
    assert hidden_files(cache) == [".mine.lock"]
    assert cache.list() == []


def test_a_build_that_is_no_model_does_not_enter(cache: ModelCache) -> None:
    with pytest.raises(ModelSourceError, match=r"no config\.json"):
        cache.build("mine", lambda directory: None, needed_bytes=1, progress=SILENT)
    assert "mine" not in cache


def test_a_build_that_cannot_fit_does_not_start(cache: ModelCache) -> None:
    started: list[Path] = []
    with pytest.raises(StorageFull, match=r"needs about .* free.*DEEPSEEK_HOME") as caught:
        cache.build("mine", started.append, needed_bytes=2**60, progress=SILENT)
    assert started == []
    assert str(cache.root) in caught.value.message


def test_a_cache_that_cannot_be_written_is_named(tiny_llama_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (Path("/proc/deepseek"), tmp_path / "file"):
        with pytest.raises(ConfigurationError, match="set DEEPSEEK_HOME") as caught:
            ModelCache(root).add_path("mine", tiny_llama_dir)
        assert str(root) in caught.value.message


BUILDER = textwrap.dedent(
    """
    import shutil, sys, time
    from pathlib import Path
    from deepseek.weights.cache import ModelCache
    from deepseek.weights.progress import SilentProgress

    home, source, log, go = map(Path, sys.argv[1:])

    def fill(directory):
        shutil.copytree(source, directory, dirs_exist_ok=True)
        with log.open("a") as file:
            file.write("built\\n")
        while not go.exists():
            time.sleep(0.01)

    print("ready", flush=True)
    ModelCache(home).build("m", fill, needed_bytes=1, progress=SilentProgress())
    """
)


def start_builder(cache: ModelCache, source: Path, tmp_path: Path) -> "subprocess.Popen[str]":
    paths = (cache.root, source, tmp_path / "log", tmp_path / "go")
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, *map(str, paths)],
        env={**os.environ, **environment_of_own_modules()},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_until_built(tmp_path: Path) -> None:
    while not (tmp_path / "log").exists():
        time.sleep(0.01)


@pytest.mark.timeout(60)
def test_two_processes_build_a_model_once(
    tiny_llama_dir: Path, tmp_path: Path, cache: ModelCache
) -> None:
    builders = [start_builder(cache, tiny_llama_dir, tmp_path) for _ in range(2)]
    for builder in builders:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "ready\n"
    wait_until_built(tmp_path)
    (tmp_path / "go").touch()
    for builder in builders:
        builder.communicate()
    assert [builder.returncode for builder in builders] == [0, 0]
    assert (tmp_path / "log").read_text() == "built\n"
    assert [model.error for model in cache.list()] == [None]


@pytest.mark.timeout(60)
def test_what_a_killed_build_left_is_replaced(
    tiny_llama_dir: Path, tmp_path: Path, cache: ModelCache
) -> None:
    with start_builder(cache, tiny_llama_dir, tmp_path) as builder:
        wait_until_built(tmp_path)
        builder.send_signal(signal.SIGKILL)
    assert cache.list() == []
    assert any(name.endswith(".partial") for name in hidden_files(cache))
    (tmp_path / "go").touch()
    with start_builder(cache, tiny_llama_dir, tmp_path) as builder:
        builder.communicate()
    assert [model.name for model in cache.list()] == ["m"]
    assert hidden_files(cache) == [".m.lock"]


def start_adding(home: Path, file: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "deepseek.cli.main", "models", "add", "m", "--path", str(file)]
    environment = {**os.environ, **environment_of_own_modules(), "DEEPSEEK_HOME": str(home)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_conversion_killed_in_the_middle_is_done_again(
    tiny_llama_dir: Path, tmp_path: Path, cache: ModelCache
) -> None:
    file = write_gguf(tiny_llama_dir, tmp_path / "tiny.gguf")
    with start_adding(cache.root, file) as adding:
        assert adding.stderr is not None
        assert adding.stderr.readline() == "converting tiny.gguf to safetensors\n"
        adding.send_signal(signal.SIGKILL)
    assert "m" not in cache
    with start_adding(cache.root, file) as adding:
        adding.communicate()
        assert adding.returncode == 0
    assert [(model.name, model.error) for model in cache.list()] == [("m", None)]
    assert hidden_files(cache) == [".m.lock"]


def test_waiting_for_another_process_is_reported(tiny_llama_dir: Path, cache: ModelCache) -> None:
    stages: list[str] = []
    is_waiting = threading.Event()

    class Watch(SilentProgress):
        def stage(self, name: str, **_: object) -> None:
            stages.append(name)
            is_waiting.set()

    def fill_slowly(directory: Path) -> None:
        waiter.start()
        assert is_waiting.wait(timeout=5)
        shutil.copytree(tiny_llama_dir, directory, dirs_exist_ok=True)

    def must_not_fill(directory: Path) -> None:
        stages.append("filled twice")

    waiter = threading.Thread(
        target=cache.build,
        args=("m", must_not_fill),
        kwargs={"needed_bytes": 1, "progress": Watch()},
    )
    cache.build("m", fill_slowly, needed_bytes=1, progress=SILENT)
    waiter.join()
    assert stages == ["m: waiting for another process that prepares it"]
