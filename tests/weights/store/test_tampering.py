"""Damaged, exchanged and sealed weights: refused by name, nothing half-loaded."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from deepseek.core.errors import ConfigurationError, CorruptWeights
from deepseek.weights.progress import SilentProgress
from deepseek.weights.store.checking import StoreChecker
from deepseek.weights.store.chunk_store import ChunkStore
from deepseek.weights.store.importing import SealingKey
from deepseek.weights.store.manifest import (
    MAX_CHUNK_BYTES,
    Manifest,
    config_digest,
    read_manifest,
    revision_of,
    write_manifest,
)
from deepseek.weights.store.reader import ModelReader, Verify, open_model
from tests.weights.store.models import (
    Tensors,
    assert_same,
    import_model,
    random_tensors,
    tensors_in,
    write_source,
)

KEY = SealingKey(key_id="team-a", key=bytes(range(32)))


def keys(key_id: str) -> bytes:
    assert key_id == KEY.key_id
    return KEY.key


@pytest.fixture
def sealed(store: ChunkStore, source: Path, tmp_path: Path) -> Path:
    import_model(store, source, tmp_path / "models" / "sealed", seal=KEY)
    return tmp_path / "models" / "sealed"


def read_all(reader: ModelReader) -> None:
    """Read in both ways; the first must already fail."""
    with pytest.raises(CorruptWeights) as mapped:
        reader.map(verify=Verify.ALWAYS)
    with pytest.raises(CorruptWeights) as streamed:
        for _ in reader.chunks(lambda c: memoryview(bytearray(c.num_bytes)), verify=Verify.ALWAYS):
            pass
    assert mapped.value.message == streamed.value.message
    raise mapped.value


def flip(store: ChunkStore, digest: str) -> str:
    """Flip one bit in the middle of a chunk; returns its pack's name."""
    at = store.index.locate([digest])[digest]
    with store.pack_path(at.pack).open("r+b") as pack:
        pack.seek(at.start + at.num_bytes // 2)
        byte = pack.read(1)[0]
        pack.seek(-1, 1)
        pack.write(bytes([byte ^ 1]))
    return store.pack_path(at.pack).name


@pytest.mark.parametrize("fixture", ["model", "sealed"])
def test_a_flipped_bit_in_any_chunk_is_refused_and_named(
    fixture: str, request: pytest.FixtureRequest, store: ChunkStore
) -> None:
    directory: Path = request.getfixturevalue(fixture)
    reader = open_model(directory, keys=keys)
    for place, entry in zip(reader.image.chunks, reader.manifest.chunks, strict=True):
        pack = flip(store, entry.digest)
        with pytest.raises(CorruptWeights) as caught:
            read_all(reader)
        names = reader.image.tensors_in(place)
        for word in (repr(names[0]), f"chunk {place.index} ", entry.digest[:16], pack):
            assert word in caught.value.message
        (fault,) = StoreChecker(SilentProgress()).check("m", directory)
        assert fault.tensors == tuple(names)
        assert pack in fault.message
        flip(store, entry.digest)
    assert not StoreChecker(SilentProgress()).check("m", directory)


def test_a_truncated_pack_is_refused_before_it_is_mapped(model: Path, store: ChunkStore) -> None:
    pack = store.pack_path(1)
    with pack.open("r+b") as file:
        file.truncate(pack.stat().st_size - 1)
    with pytest.raises(CorruptWeights, match=r"000001\.pack is cut off"):
        read_all(open_model(model))
    faults = StoreChecker(SilentProgress()).check("m", model)
    assert [fault.tensors for fault in faults] == [("lm_head.weight",)]


def test_a_missing_pack_and_a_missing_store_are_named(model: Path, store: ChunkStore) -> None:
    store.pack_path(1).unlink()
    with pytest.raises(CorruptWeights, match=r"000001\.pack is missing"):
        read_all(open_model(model))
    shutil.rmtree(store.root)
    with pytest.raises(CorruptWeights, match="does not have chunk"):
        read_all(open_model(model))


def test_the_manifest_of_another_model_is_refused(
    model: Path, store: ChunkStore, tmp_path: Path
) -> None:
    other = write_source(tmp_path / "s", random_tensors(layers=2), num_hidden_layers=2)
    import_model(store, other, tmp_path / "models" / "other")
    shutil.copy(tmp_path / "models" / "other" / "model.chunks.json", model)
    with pytest.raises(CorruptWeights, match="is the manifest of model 'other'"):
        open_model(model)


@pytest.mark.parametrize("position", range(0, 4000, 97))
def test_a_changed_manifest_is_refused(model: Path, position: int) -> None:
    file = model / "model.chunks.json"
    content = bytearray(file.read_bytes())
    if chr(content[position]).isspace():
        position += 1 + next(
            i for i, c in enumerate(content[position + 1 :]) if not chr(c).isspace()
        )
    content[position] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptWeights, match=r"model\.chunks\.json (is damaged|was changed)"):
        open_model(model)


def forged(manifest: Manifest, directory: Path, **changes: object) -> None:
    """Write a manifest that was changed by someone who knows the format."""
    changed = msgspec.structs.replace(manifest, **changes)
    write_manifest(msgspec.structs.replace(changed, revision=revision_of(changed)), directory)


@pytest.mark.parametrize(
    "change",
    [
        {"chunk": 99},
        {"chunk": -1},
        {"offset": 10**7},
        {"offset": -64},
        {"num_bytes": 10**9},
        {"shape": (10**6, 64)},
        {"shape": (-300, -64)},
        {"num_bytes": 300 * 64 * 4 + 4096, "dtype": "unheard-of"},
    ],
)
def test_a_tensor_outside_its_chunks_is_refused(model: Path, change: dict[str, object]) -> None:
    manifest = read_manifest(model)
    name = "lm_head.weight"
    entry = msgspec.structs.replace(manifest.tensors[name], **change)
    forged(manifest, model, tensors={**manifest.tensors, name: entry})
    with pytest.raises(CorruptWeights, match="contradicts itself: tensor 'lm_head"):
        open_model(model)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_bytes": MAX_CHUNK_BYTES + 1}, "chunk 0 is impossible"),
        ({"num_bytes": -1}, "chunk 0 is impossible"),
        ({"digest": "00"}, r"is damaged \(.*chunks\[0\].*digest"),
    ],
)
def test_an_impossible_chunk_is_refused(model: Path, change: dict[str, object], words: str) -> None:
    manifest = read_manifest(model)
    first = msgspec.structs.replace(manifest.chunks[0], **change)
    forged(manifest, model, chunks=(first, *manifest.chunks[1:]))
    with pytest.raises(CorruptWeights, match=words):
        open_model(model)


def test_a_chunk_of_another_length_is_refused(model: Path) -> None:
    manifest = read_manifest(model)
    last = msgspec.structs.replace(manifest.chunks[0], digest=manifest.chunks[-1].digest)
    forged(manifest, model, chunks=(last, *manifest.chunks[1:]))
    with pytest.raises(CorruptWeights, match="has another length"):
        read_all(open_model(model))


def test_a_sealed_model_comes_back_with_its_key(sealed: Path, tensors: Tensors) -> None:
    reader = open_model(sealed, keys=keys)
    assert_same(tensors_in(reader, reader.map()), tensors)


def test_sealed_packs_hold_no_plain_bytes(
    sealed: Path, store: ChunkStore, tensors: Tensors
) -> None:
    stored = store.pack_path(1).read_bytes()
    assert not [name for name, value in tensors.items() if value.tobytes()[:256] in stored]


def test_no_two_imports_share_a_data_key(sealed: Path, store: ChunkStore, source: Path) -> None:
    again = import_model(store, source, sealed.with_name("again"), seal=KEY)
    first = read_manifest(sealed)
    assert not {c.digest for c in first.chunks} & {c.digest for c in again.chunks}


def test_a_wrong_key_is_refused(sealed: Path) -> None:
    reader = open_model(sealed, keys=lambda key_id: bytes(32))
    image = memoryview(bytearray(reader.image.num_bytes))
    with pytest.raises(CorruptWeights, match=r"cannot be opened with key 'team-a': .*wrong key"):
        list(reader.chunks(lambda chunk: image[chunk.start : chunk.end]))
    assert not any(image), "nothing of what did not authenticate may be seen"
    with pytest.raises(CorruptWeights, match="wrong key"):
        reader.map()


def test_a_key_is_asked_for_by_its_name(sealed: Path) -> None:
    with pytest.raises(ConfigurationError, match="sealed with key 'team-a'"):
        open_model(sealed)
    with pytest.raises(ConfigurationError, match="has 5 bytes"):
        open_model(sealed, keys=lambda key_id: b"short")


def test_sealed_chunks_cannot_stand_in_each_others_place(sealed: Path) -> None:
    manifest = read_manifest(sealed)
    first, second, *rest = manifest.chunks
    assert first.num_bytes == second.num_bytes
    forged(manifest, sealed, chunks=(second, first, *rest))
    with pytest.raises(CorruptWeights, match="cannot be opened"):
        read_all(open_model(sealed, keys=keys))


@pytest.mark.parametrize("what", ["config", "model", "key id"])
def test_a_sealed_model_cannot_pass_for_another(sealed: Path, what: str) -> None:
    """Its own chunks and key, but a manifest that says they belong elsewhere."""
    manifest = read_manifest(sealed)
    assert manifest.sealing is not None
    match what:
        case "config":
            (sealed / "config.json").write_text(json.dumps({"model_type": "other"}))
            forged(manifest, sealed, config=config_digest(sealed))
        case "model":
            forged(manifest, sealed, model="other")
        case _:
            forged(manifest, sealed, sealing=msgspec.structs.replace(manifest.sealing, key_id="b"))
    with pytest.raises(CorruptWeights, match="cannot be opened"):
        read_all(open_model(sealed, keys=lambda key_id: KEY.key))
