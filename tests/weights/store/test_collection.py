"""Garbage goes, everything else stays: beside readers, importers, and after kills."""

import fcntl
import threading
from pathlib import Path

import pytest

from deepseek.core.errors import CorruptWeights
from deepseek.weights.progress import SilentProgress
from deepseek.weights.store.chunk_store import ChunkStore
from deepseek.weights.store.collection import Collected, collect_garbage
from deepseek.weights.store.manifest import read_manifest
from deepseek.weights.store.reader import Verify, open_model
from tests.weights.store.models import (
    Tensors,
    assert_same,
    import_model,
    pack_bytes,
    random_tensors,
    tensors_in,
    write_source,
)

SILENT = SilentProgress()


def collect(store: ChunkStore) -> Collected:
    return collect_garbage(store, progress=SILENT)


def assert_readable(model: Path, tensors: Tensors) -> None:
    reader = open_model(model)
    assert_same(tensors_in(reader, reader.map(verify=Verify.ALWAYS)), tensors)


@pytest.fixture
def other(store: ChunkStore, tmp_path: Path) -> tuple[Path, Tensors]:
    """A second model in the same pack, which shares the first one's first layer."""
    tensors = random_tensors(seed=1)
    for name, value in random_tensors().items():
        if "layers.0" in name:
            tensors[name] = value
    place = tmp_path / "models" / "other"
    import_model(store, write_source(tmp_path / "other source", tensors), place)
    return place, tensors


def remove(model: Path) -> None:
    (model / "model.chunks.json").unlink()


def test_there_is_nothing_to_collect_where_there_is_no_store(store: ChunkStore) -> None:
    assert collect(store) == Collected(num_chunks=0, freed_bytes=0)
    assert not store.root.exists()


def test_what_is_used_stays(model: Path, store: ChunkStore, tensors: Tensors) -> None:
    before = pack_bytes(store)
    assert collect(store) == Collected(num_chunks=0, freed_bytes=0)
    assert pack_bytes(store) == before
    assert_readable(model, tensors)


def test_what_no_model_uses_goes_and_its_pack_with_it(model: Path, store: ChunkStore) -> None:
    before, num_chunks = pack_bytes(store), len(read_manifest(model).chunks)
    remove(model)
    assert collect(store) == Collected(num_chunks=num_chunks, freed_bytes=before)
    assert list((store.root / "packs").iterdir()) == []
    assert collect(store) == Collected(num_chunks=0, freed_bytes=0)


@pytest.mark.parametrize("removed", [0, 1])
def test_a_pack_that_is_half_dead_is_compacted(
    model: Path, store: ChunkStore, tensors: Tensors, other: tuple[Path, Tensors], removed: int
) -> None:
    models = [(model, tensors), other]
    before = pack_bytes(store)
    remove(models.pop(removed)[0])
    collected = collect(store)
    assert collected.freed_bytes > before / 3
    assert pack_bytes(store) == before - collected.freed_bytes
    assert_readable(*models[0])


def test_an_imports_garbage_is_taken_and_the_next_import_begins_anew(
    source: Path, store: ChunkStore, tmp_path: Path, tensors: Tensors
) -> None:
    class Interrupt(SilentProgress):
        def advance(self, amount: int = 1) -> None:
            if pack_bytes(store) > 100_000:
                raise KeyboardInterrupt

    place = tmp_path / "m"
    with pytest.raises(KeyboardInterrupt):
        import_model(store, source, place, commit_bytes=1, progress=Interrupt())
    assert collect(store).num_chunks > 0
    assert pack_bytes(store) == 0
    import_model(store, source, place)
    assert_readable(place, tensors)


def test_importers_and_collectors_wait_for_one_another(
    source: Path, store: ChunkStore, tmp_path: Path, tensors: Tensors
) -> None:
    """A collection begun in the middle of an import takes nothing of it."""
    is_waiting = threading.Event()
    collected: list[Collected] = []

    class Watch(SilentProgress):
        def stage(self, name: str, **_: object) -> None:
            if name.startswith("waiting"):
                is_waiting.set()

    def run() -> None:
        collected.append(collect_garbage(store, progress=Watch()))

    collector = threading.Thread(target=run)

    class Begin(SilentProgress):
        def advance(self, amount: int = 1) -> None:
            if not collector.ident:
                collector.start()
                assert is_waiting.wait(5)

    import_model(store, source, tmp_path / "m", commit_bytes=1, progress=Begin())
    collector.join(5)
    assert collected == [Collected(num_chunks=0, freed_bytes=0)]
    assert_readable(tmp_path / "m", tensors)


def test_a_reader_that_looked_up_before_a_compaction_reads_after_it(
    model: Path, store: ChunkStore, tensors: Tensors, other: tuple[Path, Tensors]
) -> None:
    sizes = read_manifest(model).sizes
    digest, num_bytes = sizes[0]
    with store.opened(sizes) as chunks:
        remove(other[0])
        assert collect(store).freed_bytes > 0
        assert not store.pack_path(1).exists()
        content = memoryview(bytearray(num_bytes))
        chunks.read(digest, content)
    assert content.tobytes() == tensors["model.embed_tokens.weight"].tobytes()[:num_bytes]


def test_a_manifest_that_cannot_be_read_stops_the_collection(
    model: Path, store: ChunkStore, other: tuple[Path, Tensors]
) -> None:
    before = pack_bytes(store)
    (model / "model.chunks.json").write_text("{}")
    with pytest.raises(CorruptWeights, match=r"model\.chunks\.json is damaged"):
        collect(store)
    assert pack_bytes(store) == before
    assert_readable(*other)


def test_a_damaged_chunk_is_not_copied_to_a_new_pack(
    model: Path, store: ChunkStore, other: tuple[Path, Tensors]
) -> None:
    at = store.index.locate([read_manifest(other[0]).chunks[0].digest])
    start = next(iter(at.values())).start
    with store.pack_path(1).open("r+b") as pack:
        pack.seek(start)
        pack.write(b"damage")
    remove(model)
    with pytest.raises(CorruptWeights, match=r"000001\.pack is damaged"):
        collect(store)
    assert store.pack_path(1).exists()


def test_what_a_killed_collection_left_is_removed(
    model: Path, store: ChunkStore, tensors: Tensors
) -> None:
    store.index.new_pack()  # killed before the file was there
    stray = store.pack_path(77)  # killed before the file was gone
    stray.write_bytes(bytes(8192))
    assert collect(store).freed_bytes == 8192
    assert store.index.packs().keys() == {1}
    assert_readable(model, tensors)


def test_a_collector_lets_go_of_its_lock(model: Path, store: ChunkStore) -> None:
    collect(store)
    with (store.root / "store.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
