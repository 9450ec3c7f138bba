"""The index as a file: foreign, damaged, write-protected, shared between threads."""

import sqlite3
import threading
from pathlib import Path

import pytest

from deepseek.core.errors import ConfigurationError, CorruptWeights
from deepseek.weights.store.index import Index, Location

DIGESTS = [f"{n:064x}" for n in range(40)]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    index = Index(tmp_path / "index.sqlite")
    index.create()
    index.create()
    return index


def at(pack: int, start: int = 0) -> Location:
    return Location(pack=pack, start=start, num_bytes=100)


def record(index: Index, chunks: dict[str, Location]) -> None:
    index.record(chunks, journal={}, import_key=b"key")


def test_a_chunk_is_where_it_was_put_last(index: Index) -> None:
    pack = index.new_pack()
    record(index, {DIGESTS[0]: at(pack), DIGESTS[1]: at(pack, 4096)})
    index.move({DIGESTS[0]: at(pack, 8192)})
    assert index.locate(DIGESTS[:3]) == {DIGESTS[0]: at(pack, 8192), DIGESTS[1]: at(pack, 4096)}
    assert list(index.chunks_of_pack(pack)) == [DIGESTS[1], DIGESTS[0]]


def test_a_pack_ends_behind_all_that_ever_was_in_it(index: Index) -> None:
    first, second = index.new_pack(), index.new_pack()
    record(index, {DIGESTS[0]: at(first, 4096)})
    index.move({DIGESTS[0]: at(second)})
    assert index.packs() == {first: 4196, second: 100}


def test_a_packs_number_is_never_used_again(index: Index) -> None:
    number = index.new_pack()
    index.drop_pack(number)
    assert index.new_pack() > number


def test_a_journal_is_its_imports_own(index: Index) -> None:
    index.record({}, journal={0: DIGESTS[0], 7: DIGESTS[1]}, import_key=b"a")
    index.record({}, journal={0: DIGESTS[2]}, import_key=b"b")
    assert index.journal(b"a") == {0: DIGESTS[0], 7: DIGESTS[1]}
    index.forget_import(b"a")
    assert (index.journal(b"a"), index.journal(b"b")) == ({}, {0: DIGESTS[2]})


def test_collecting_keeps_what_is_named(index: Index) -> None:
    pack = index.new_pack()
    record(index, {digest: at(pack, 4096 * n) for n, digest in enumerate(DIGESTS)})
    index.register("a")
    index.register("b")
    assert index.keep_only(DIGESTS[:3], models=["b"]) == len(DIGESTS) - 3
    assert list(index.locate(DIGESTS)) == DIGESTS[:3]
    assert index.models() == ["b"]


def test_writers_wait_for_one_another(index: Index) -> None:
    pack = index.new_pack()

    def write(part: int) -> None:
        for n in range(part, len(DIGESTS), 4):
            record(index, {DIGESTS[n]: at(pack, 4096 * n)})

    threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(index.locate(DIGESTS)) == len(DIGESTS)


def test_an_index_of_another_version_is_not_touched(index: Index, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "index.sqlite") as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    for use in (index.packs, index.new_pack, index.create):
        with pytest.raises(CorruptWeights, match="of version 2, this program reads version 1"):
            use()


def test_a_file_that_is_no_index_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.sqlite").write_bytes(b"no index at all" * 100)
    with pytest.raises(CorruptWeights, match=r"index\.sqlite is damaged"):
        Index(tmp_path / "index.sqlite").packs()


def test_an_index_that_is_not_there_has_nothing(tmp_path: Path) -> None:
    index = Index(tmp_path / "index.sqlite")
    assert not index.exists
    with pytest.raises(ConfigurationError, match="cannot be read"):
        index.packs()
    assert not (tmp_path / "index.sqlite").exists()
