"""The files of prepared weights: whole or absent, within a budget, whoever else is at work."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from deepseek.core.errors import ConfigurationError, CorruptWeights, StorageFull
from deepseek.weights.child_process import environment_of_own_modules
from deepseek.weights.prepared.prepared_file import (
    Origin,
    StoredTensor,
    WritingStopped,
    open_prepared,
)
from deepseek.weights.prepared.shelf import PreparedShelf

KEY = "ab" * 20
OTHER = "cd" * 20
THIRD = "ef" * 20
ORIGIN = Origin(model="/a/model", identity="its weights")


def tensors(fill: int = 1, *, size: int = 100_000) -> dict[str, StoredTensor]:
    """Three of which no one ends where the next may begin."""
    return {
        "big": StoredTensor(dtype="U8", shape=(size,), data=memoryview(bytes([fill]) * size)),
        "none": StoredTensor(dtype="F32", shape=(0, 4), data=memoryview(b"")),
        "odd": StoredTensor(dtype="I16", shape=(3,), data=memoryview(bytes([fill]) * 6)),
        "a/b": StoredTensor(dtype="I8", shape=(2, 5), data=memoryview(bytes([fill]) * 10)),
    }


def add(
    shelf: PreparedShelf, key: str, *, fill: int = 1, size: int = 100_000, budget: int = 10**6
) -> bool:
    return shelf.add(
        key,
        tensors(fill, size=size),
        origin=ORIGIN,
        about="a test's",
        budget_bytes=budget,
        is_wanted=lambda: True,
    )


@pytest.fixture
def shelf(tmp_path: Path) -> PreparedShelf:
    return PreparedShelf(tmp_path / "prepared")


def test_what_was_added_is_found_and_mapped_byte_for_byte(shelf: PreparedShelf) -> None:
    assert shelf.find(KEY) is None
    assert add(shelf, KEY, size=20 << 20, budget=1 << 30)
    found = shelf.find(KEY)
    assert found is not None
    assert found.about == "a test's"
    memory = found.map()
    assert found.data_start % 4096 == 0
    for name, tensor in tensors(size=20 << 20).items():
        entry = found.tensors[name]
        start, end = found.data_start + entry.start, found.data_start + entry.end
        assert start % 64 == 0 or not tensor.data.nbytes
        assert memory[start:end] == tensor.data
        assert entry.shape == tensor.shape
    assert [path.name for path in shelf.root.iterdir()] == [f"{KEY}.safetensors"]


def test_any_reader_of_safetensors_can_read_a_file(shelf: PreparedShelf) -> None:
    add(shelf, KEY, fill=7)
    with safe_open(shelf.root / f"{KEY}.safetensors", framework="numpy") as file:
        assert file.get_tensor("odd").tolist() == [7 * 257] * 3
        assert file.metadata()["format"] == "deepseek-prepared/1"


def test_a_file_that_was_written_by_another_process_is_checked_once(shelf: PreparedShelf) -> None:
    add(shelf, KEY)
    path = shelf.root / f"{KEY}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(CorruptWeights, match="its digest differs"):
            open_prepared(path, KEY).map()


def test_a_file_that_grew_or_shrank_since_it_was_opened_is_refused(shelf: PreparedShelf) -> None:
    add(shelf, KEY)
    found = shelf.find(KEY)
    assert found is not None
    os.truncate(found.path, found.num_bytes - 1)
    with pytest.raises(CorruptWeights, match="bytes long"):
        found.map()


def test_who_has_a_file_mapped_keeps_it(shelf: PreparedShelf) -> None:
    add(shelf, KEY, fill=3)
    found = shelf.find(KEY)
    assert found is not None
    memory = found.map()
    shelf.remove(KEY)
    assert shelf.find(KEY) is None
    add(shelf, KEY, fill=4)
    start = found.data_start + found.tensors["big"].start
    assert memory[start : start + 5].tobytes() == bytes([3]) * 5


def test_the_least_recently_used_makes_room(shelf: PreparedShelf) -> None:
    add(shelf, KEY)
    add(shelf, OTHER)
    for key, at_s in ((KEY, 1000), (OTHER, 2000)):
        os.utime(shelf.root / f"{key}.safetensors", (at_s, at_s))
    assert shelf.find(KEY) is not None  # used now
    assert add(shelf, THIRD, budget=250_000)
    assert [entry.key for entry in shelf.entries()] == [KEY, THIRD]
    assert sum(entry.num_bytes for entry in shelf.entries()) < 250_000


def test_what_is_larger_than_the_budget_is_not_written_and_drives_nobody_out(
    shelf: PreparedShelf,
) -> None:
    add(shelf, KEY)
    assert not add(shelf, OTHER, budget=90_000)
    assert [entry.key for entry in shelf.entries()] == [KEY]


def test_a_writing_that_is_stopped_leaves_nothing(shelf: PreparedShelf) -> None:
    answers = iter([True, True, False])
    with pytest.raises(WritingStopped):
        shelf.add(
            KEY,
            tensors(size=20 << 20),
            origin=ORIGIN,
            about="",
            budget_bytes=1 << 30,
            is_wanted=lambda: next(answers),
        )
    assert list(shelf.root.iterdir()) == []


def test_a_file_system_without_room_is_named(
    shelf: PreparedShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(shelf.root.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StorageFull, match="no room for prepared weights"):
        add(shelf, KEY)
    assert shelf.entries() == []


def test_a_directory_that_cannot_be_is_named(shelf: PreparedShelf) -> None:
    shelf.root.write_text("a file")
    with pytest.raises(ConfigurationError, match="prepared weights cannot be kept in"):
        add(shelf, KEY)
    assert shelf.find(KEY) is None


def test_what_a_killed_process_left_is_taken_over_or_removed(shelf: PreparedShelf) -> None:
    shelf.root.mkdir()
    for key in (KEY, OTHER):
        (shelf.root / f"{key}.partial").write_bytes(b"x" * 1000)
    assert add(shelf, KEY)
    assert shelf.find(KEY) is not None
    assert shelf.remove_leftovers() == 1000
    assert [path.name for path in shelf.root.iterdir()] == [f"{KEY}.safetensors"]


_WRITER = """
import sys
from tests.weights.prepared.test_shelf import KEY, ORIGIN, PreparedShelf, tensors
from pathlib import Path

seen = []

def is_wanted():
    seen.append(0)
    if len(seen) == 2:
        print("writing", flush=True)
        sys.stdin.readline()
    return True

shelf = PreparedShelf(Path(sys.argv[1]))
written = tensors(9, size=20 << 20)
print(
    shelf.add(
        KEY, written, origin=ORIGIN, about="", budget_bytes=1 << 30, is_wanted=is_wanted
    )
)
"""


def test_of_two_processes_that_write_the_same_one_does(shelf: PreparedShelf) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(shelf.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment_of_own_modules()},
        cwd=Path(__file__).parents[3],
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "writing\n"
        assert not add(shelf, KEY, budget=1 << 30), "the other one is at it"
        assert shelf.find(KEY) is None, "and not ready"
        assert shelf.remove_leftovers() == 0, "and not to be disturbed"
        assert add(shelf, OTHER, budget=1 << 30), "another file is nobody's"
        other.stdin.write("\n")
        other.stdin.close()
        assert other.stdout.read() == "True\n"
    found = shelf.find(KEY)
    assert found is not None
    start = found.data_start + found.tensors["big"].start
    assert found.map()[start] == 9
