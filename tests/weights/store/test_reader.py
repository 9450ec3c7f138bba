"""What is read is what was imported, mapped or chunk by chunk."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek.core.errors import CorruptWeights
from deepseek.weights.progress import SilentProgress
from deepseek.weights.store import reader as reader_module
from deepseek.weights.store.chunk_store import ChunkStore
from deepseek.weights.store.collection import collect_garbage
from deepseek.weights.store.manifest import ChunkPlace
from deepseek.weights.store.reader import ModelReader, Verify, open_model
from tests.weights.store.models import (
    Tensors,
    assert_same,
    import_model,
    pack_bytes,
    random_tensors,
    tensors_in,
    write_source,
)

ARRAYS = st.tuples(
    st.sampled_from([np.float32, np.float16, np.uint8, np.int64]),
    st.lists(st.integers(0, 70), max_size=3).map(tuple),
)
MODELS = st.dictionaries(
    st.sampled_from(
        ["model.embed_tokens.weight", "model.layers.0.q", "model.layers.0.norm", "x", "lm_head.w"]
    ),
    ARRAYS,
)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Yields a new directory for each example."""
    return (tmp_path_factory.mktemp("example") for _ in iter(int, 1))


def filled(reader: ModelReader, **options: Any) -> memoryview:
    image = memoryview(bytearray(reader.image.num_bytes))
    for _ in reader.chunks(lambda chunk: image[chunk.start : chunk.end], **options):
        pass
    return image


@pytest.mark.timeout(60)  # each example waits for the disk several times
@given(MODELS, st.integers(0, 2**32))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_byte_comes_back(directories: Any, shapes: Any, seed: int) -> None:
    tmp_path = next(directories)
    rng = np.random.default_rng(seed)
    tensors = {
        name: rng.integers(0, 256, int(np.prod(shape)) * np.dtype(kind).itemsize, dtype=np.uint8)
        .view(kind)
        .reshape(shape)
        for name, (kind, shape) in shapes.items()
    }
    store = ChunkStore(tmp_path / "chunks", pack_bytes=50_000)
    source = write_source(tmp_path / "source", tensors)
    import_model(store, source, tmp_path / "m")
    reader = open_model(tmp_path / "m")
    assert_same(tensors_in(reader, reader.map()), tensors)
    assert_same(tensors_in(reader, filled(reader)), tensors)


@pytest.mark.timeout(60)  # each example waits for the disk several times
@given(st.sets(st.sampled_from(sorted(random_tensors()))))
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_variants_share_the_chunks_of_what_they_share(directories: Any, changed: set[str]) -> None:
    tmp_path = next(directories)
    store = ChunkStore(tmp_path / "chunks")
    base = random_tensors()
    variant = {name: value + (name in changed) for name, value in base.items()}
    import_model(store, write_source(tmp_path / "s1", base), tmp_path / "base")
    before = pack_bytes(store)
    import_model(store, write_source(tmp_path / "s2", variant), tmp_path / "variant")
    changed_bytes = sum(base[name].nbytes for name in changed)
    gathered_bytes = 4096 * 6  # the norms of a layer stand in one chunk
    assert pack_bytes(store) - before <= changed_bytes + 4096 * len(changed) + gathered_bytes
    if not changed:
        assert pack_bytes(store) == before
    reader = open_model(tmp_path / "variant")
    assert_same(tensors_in(reader, reader.map()), variant)


def test_a_mapping_is_the_packs_own_pages(model: Path) -> None:
    memory = open_model(model).map()
    mapped = Path("/proc/self/maps").read_text()
    assert str(model.parents[1] / "chunks" / "packs" / "000001.pack") in mapped
    del memory
    assert "000001.pack" not in Path("/proc/self/maps").read_text()


def test_writing_to_a_mapping_changes_no_pack(model: Path, tensors: Tensors) -> None:
    reader = open_model(model)
    memory = reader.map()
    memory[0:8192] = bytes(8192)
    again = open_model(model).map(verify=Verify.ALWAYS)
    assert_same(tensors_in(reader, again), tensors)


def test_a_mapping_outlives_reader_pack_and_store(
    model: Path, store: ChunkStore, tensors: Tensors
) -> None:
    reader = open_model(model)
    memory = reader.map(verify=Verify.NEVER)
    (model / "model.chunks.json").unlink()
    collect_garbage(store, progress=SilentProgress())
    assert pack_bytes(store) == 0
    assert_same(tensors_in(reader, memory), tensors)


def test_chunks_come_in_first_use_order_and_whole(model: Path, tensors: Tensors) -> None:
    reader = open_model(model)
    image = memoryview(bytearray(reader.image.num_bytes))
    ready = 0
    expected = {name: value.tobytes() for name, value in tensors.items()}
    for chunk in reader.chunks(lambda chunk: image[chunk.start : chunk.end], ahead=3):
        assert chunk.start >= ready
        ready = chunk.end
        for name, place in reader.image.tensors.items():
            if place.end <= ready:
                assert bytes(image[place.start : place.end]) == expected[name], name
    assert next(iter(reader.image.tensors)) == "model.embed_tokens.weight"
    assert list(reader.image.tensors)[-1] == "lm_head.weight"


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_leaving_the_loop_cancels(model: Path, ahead: int) -> None:
    reader = open_model(model)
    asked: list[int] = []

    def into(chunk: ChunkPlace) -> memoryview:
        asked.append(chunk.index)
        return memoryview(bytearray(chunk.num_bytes))

    descriptors = len(os.listdir("/proc/self/fd"))
    chunks = reader.chunks(into, ahead=ahead)
    assert next(chunks).index == 0
    assert next(chunks).index == 1
    chunks.close()
    assert asked == list(range(ahead + 1))
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_chunk_is_checked_once_a_process_unless_told_otherwise(
    model: Path, store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_a_bit(store, 100)
    reader = open_model(model)
    with store.opened(reader.manifest.sizes) as chunks:
        checked = {chunks.copy_of(chunk.digest) for chunk in reader.image.chunks}
    monkeypatch.setattr(reader_module, "_checked", checked)  # as if the disk had lost the bit since
    filled(reader)
    reader.map()
    filled(reader, verify=Verify.NEVER)
    for read in (
        lambda: filled(reader, verify=Verify.ALWAYS),
        lambda: reader.map(verify=Verify.ALWAYS),
    ):
        with pytest.raises(CorruptWeights, match="its digest differs"):
            read()


def test_a_pack_that_was_written_to_is_checked_again(model: Path, store: ChunkStore) -> None:
    reader = open_model(model)
    filled(reader)
    flip_a_bit(store, 100)
    for read in (lambda: filled(reader), reader.map):
        with pytest.raises(CorruptWeights, match="its digest differs"):
            read()
    flip_a_bit(store, 100)
    reader.map()


def test_what_another_process_found_intact_is_checked_again(
    model: Path, store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_model(model).map()
    flip_a_bit(store, 100)
    monkeypatch.setattr(reader_module, "_checked", set())  # as in a new process
    with pytest.raises(CorruptWeights, match="its digest differs"):
        open_model(model).map()


def flip_a_bit(store: ChunkStore, position: int) -> None:
    with store.pack_path(1).open("r+b") as pack:
        pack.seek(position)
        byte = pack.read(1)[0]
        pack.seek(position)
        pack.write(bytes([byte ^ 4]))
