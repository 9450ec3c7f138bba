"""Imports that are broken off, repeated, run side by side, or find what they do not expect."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

import pytest
from blake3 import blake3

from deepseek.core.errors import CorruptWeights, ModelSourceError
from deepseek.weights.child_process import environment_of_own_modules
from deepseek.weights.progress import SilentProgress
from deepseek.weights.store.checking import StoreChecker
from deepseek.weights.store.chunk_store import ChunkStore
from deepseek.weights.store.importing import import_weights
from deepseek.weights.store.manifest import has_manifest, read_manifest
from deepseek.weights.store.reader import Verify, open_model
from tests.weights.store.models import (
    CHUNK_BYTES,
    Tensors,
    assert_same,
    import_model,
    pack_bytes,
    random_tensors,
    tensors_in,
    write_source,
)

NUM_KILLS = 50


class Interrupt(SilentProgress):
    """Breaks the import off after some chunks, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self._left = after

    def advance(self, amount: int = 1) -> None:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt


def overwrite_unseen(file: Path, content: bytes) -> None:
    """Zero a part of a file without a trace in its times: whoever reads it again gets zeros."""
    times = file.stat()
    whole = file.read_bytes()
    assert content in whole
    with file.open("r+b") as opened:
        opened.write(whole.replace(content, bytes(len(content))))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def assert_complete(store: ChunkStore, model: Path, tensors: Tensors) -> None:
    assert not StoreChecker(SilentProgress()).check("m", model)
    reader = open_model(model)
    assert_same(tensors_in(reader, reader.map(verify=Verify.ALWAYS)), tensors)


def test_an_import_that_was_broken_off_goes_on_where_it_ended(
    store: ChunkStore, source: Path, tmp_path: Path, tensors: Tensors
) -> None:
    model = tmp_path / "m"
    with pytest.raises(KeyboardInterrupt):
        import_model(store, source, model, commit_bytes=CHUNK_BYTES, progress=Interrupt(9))
    assert not has_manifest(model)
    before = pack_bytes(store)
    overwrite_unseen(source / "model.safetensors", tensors["model.embed_tokens.weight"].tobytes())
    manifest = import_model(store, source, model, commit_bytes=CHUNK_BYTES)
    rest = sum(chunk.num_bytes for chunk in manifest.chunks[8:])
    assert rest <= pack_bytes(store) - before <= rest + 4096 * len(manifest.chunks)
    assert_complete(store, model, tensors)


def test_the_same_weights_take_no_more_room(
    store: ChunkStore, source: Path, model: Path, tmp_path: Path
) -> None:
    before = pack_bytes(store)
    import_model(store, source, tmp_path / "models" / "again")
    assert pack_bytes(store) == before


def test_an_import_replaces_a_damaged_chunk_for_all_that_use_it(
    store: ChunkStore, source: Path, model: Path, tmp_path: Path, tensors: Tensors
) -> None:
    with store.pack_path(1).open("r+b") as pack:
        pack.write(b"damage")
    assert len(StoreChecker(SilentProgress()).check("m", model)) == 1
    import_model(store, source, tmp_path / "models" / "again")
    assert_complete(store, model, tensors)


def test_shards_are_one_model(store: ChunkStore, tmp_path: Path, tensors: Tensors) -> None:
    names = sorted(tensors)
    files = []
    for index, part in enumerate((names[::2], names[1::2])):
        shard = write_source(tmp_path / f"s{index}", {name: tensors[name] for name in part})
        files.append(shard / "model.safetensors")
    model = tmp_path / "m"
    model.mkdir()
    shutil.copy(tmp_path / "s0" / "config.json", model)
    with store.importing(needed_bytes=0, purpose="t", progress=SilentProgress()) as writer:
        import_weights(
            tuple(files),
            directory=model,
            place=model,
            model="m",
            writer=writer,
            progress=SilentProgress(),
        )
    assert_complete(store, model, tensors)


def test_a_source_that_is_cut_off_is_refused(
    store: ChunkStore, source: Path, tmp_path: Path
) -> None:
    with (source / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)
    with pytest.raises(CorruptWeights, match=r"model\.safetensors holds"):
        import_model(store, source, tmp_path / "m")


def test_a_source_that_changes_meanwhile_is_refused(
    store: ChunkStore, source: Path, tmp_path: Path
) -> None:
    class Touch(SilentProgress):
        def advance(self, amount: int = 1) -> None:
            os.utime(source / "model.safetensors")

    with pytest.raises(ModelSourceError, match="changed while it was imported"):
        import_model(store, source, tmp_path / "m", progress=Touch())
    assert not has_manifest(tmp_path / "m")


def test_a_source_that_changed_is_imported_anew(
    store: ChunkStore, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        import_model(store, source, tmp_path / "m", progress=Interrupt(12))
    changed = random_tensors(seed=1)
    write_source(source, changed)
    import_model(store, source, tmp_path / "m")
    assert_complete(store, tmp_path / "m", changed)


def test_two_importers_at_once_write_to_packs_of_their_own(
    store: ChunkStore, source: Path, tmp_path: Path, tensors: Tensors
) -> None:
    others = random_tensors(seed=1)
    other = write_source(tmp_path / "other source", others)
    has_begun, may_end = threading.Event(), threading.Event()

    class Wait(SilentProgress):
        def advance(self, amount: int = 1) -> None:
            has_begun.set()
            assert may_end.wait(5)

    def slowly() -> None:
        import_model(store, source, tmp_path / "a", progress=Wait())

    slow = threading.Thread(target=slowly)
    slow.start()
    assert has_begun.wait(5)
    import_model(store, other, tmp_path / "b")
    import_model(store, source, tmp_path / "c")
    may_end.set()
    slow.join()
    assert len(list((store.root / "packs").iterdir())) == 2
    for name, expected in (("a", tensors), ("b", others), ("c", tensors)):
        assert_complete(store, tmp_path / name, expected)


IMPORTER = """
import os, sys
from pathlib import Path
from deepseek.weights.store.chunk_store import ChunkStore
from tests.weights.store.models import CHUNK_BYTES, import_model

source = Path(sys.argv[1])
while line := sys.stdin.readline():
    work = Path(line.strip())
    child = os.fork()
    if child == 0:
        store = ChunkStore(work / "chunks", pack_bytes=20 * CHUNK_BYTES)
        import_model(store, source, work / "m", commit_bytes=2 * CHUNK_BYTES)
        os._exit(0)
    print(child, flush=True)
    sys.stdin.readline()  # not reaped before the parent has aimed at it
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Forks an importer for each directory it is told: starting Python 100 times would take minutes."""


class Importers:
    """Runs imports in processes that can be killed."""

    def __init__(self, source: Path) -> None:
        own = environment_of_own_modules()
        repository = str(Path(__file__).parents[3])
        path = os.pathsep.join([own["PYTHONPATH"], repository])
        self._process = subprocess.Popen(
            [sys.executable, "-c", IMPORTER, str(source)],
            env={**os.environ, **own, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, work: Path, *, kill_after_s: float | None = None) -> int:
        """Return the exit code of an import into `work`; -9 if it was killed in time."""
        child = int(self._ask(str(work)))
        if kill_after_s is not None:
            time.sleep(kill_after_s)  # the point of the kill, not a wait for anything
            os.kill(child, signal.SIGKILL)
        return int(self._ask("reap"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_import_killed_at_any_point_leaves_a_sound_store_and_resumes(tmp_path: Path) -> None:
    tensors = random_tensors(layers=8)
    source = write_source(tmp_path / "source", tensors)
    first, whole = tmp_path / "first", tmp_path / "whole"
    chances = random.Random(7)
    num_chunks_left = []
    with Importers(source) as importers:
        assert importers.run(first) == 0  # Python has to start as well
        start_s = time.monotonic()
        assert importers.run(whole) == 0
        duration_s = time.monotonic() - start_s
        whole_bytes = pack_bytes(ChunkStore(whole / "chunks"))
        for attempt in range(NUM_KILLS):
            work = tmp_path / f"attempt {attempt}"
            work.mkdir()
            code = importers.run(work, kill_after_s=chances.uniform(0, duration_s))
            store = ChunkStore(work / "chunks")
            left = chunks_left(store)
            if code == -signal.SIGKILL and not has_manifest(work / "m"):
                num_chunks_left.append(len(left))
            assert importers.run(work) == 0
            assert left.items() <= chunks_left(store).items(), "what was in packs was done again"
            assert pack_bytes(store) <= whole_bytes + 2 * CHUNK_BYTES, "more than one commit again"
            assert_complete(store, work / "m", tensors)
    num_chunks = len(read_manifest(whole / "m").chunks)
    assert any(0 < left < num_chunks for left in num_chunks_left), "no kill came in the middle"


def chunks_left(store: ChunkStore) -> dict[str, tuple[int, int]]:
    """Return where the index says chunks are, having compared each with its digest."""
    if not store.exists:
        return {}
    found = {}
    for pack in store.index.packs():
        for digest, at in store.index.chunks_of_pack(pack).items():
            with store.opened([(digest, at.num_bytes)]) as chunks:
                content = memoryview(bytearray(at.num_bytes))
                chunks.read(digest, content)
            assert blake3(content).hexdigest() == digest
            found[digest] = (at.pack, at.start)
    return found
