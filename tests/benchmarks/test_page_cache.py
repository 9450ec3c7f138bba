"""What "cold" and "warm" mean in the benchmark `store`."""

from pathlib import Path

import pytest
from store_measures.peers.page_cache import drop, fill, resident_fraction


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "file"
    path.write_bytes(bytes(3_000_001))
    drop([str(path)])
    if resident_fraction([str(path)]):
        pytest.skip("the file system of the tests has no disk beneath it")
    return str(path)


def test_a_file_that_was_read_is_in_memory(file: str) -> None:
    fill([file])
    assert resident_fraction([file]) == 1
    drop([file])
    assert resident_fraction([file]) == 0


def test_a_part_that_was_read_counts_as_a_part(file: str) -> None:
    with open(file, "rb", buffering=0) as opened:
        opened.read(4096)
    assert 0 < resident_fraction([file]) <= 1
    assert resident_fraction([]) == 0
