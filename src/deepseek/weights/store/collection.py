"""Garbage collection: removes the chunks that no manifest uses, and gives their room back.

Safe at any moment. Importers are waited for, and wait; readers keep what they have opened, because
a pack is never changed: what lives in it is copied to another one, then its name goes. After a kill
the next collection goes on where this one ended.
"""

from dataclasses import dataclass
from pathlib import Path

from deepseek.core.errors import CorruptWeights
from deepseek.weights.progress import Progress
from deepseek.weights.store.chunk_store import ChunkStore
from deepseek.weights.store.cutting import MAX_CHUNK_BYTES, PAGE_BYTES, aligned
from deepseek.weights.store.index import Location
from deepseek.weights.store.manifest import has_manifest, read_manifest
from deepseek.weights.store.packs import PackWriter

_WORTH_COMPACTING = 0.25
"""Of a pack that is dead: below it, copying costs more than the room is worth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection did."""

    num_chunks: int
    """Removed."""
    freed_bytes: int
    """By which the packs became smaller."""


def collect_garbage(store: ChunkStore, *, progress: Progress) -> Collected:
    """Remove what no registered model directory's manifest names, unfinished imports included.

    A directory that is gone is no longer registered afterwards. Raises `CorruptWeights` where a
    manifest cannot be read, and `StorageFull`, having lost nothing: compaction needs as much free
    room as one pack.
    """
    if not store.exists:
        return Collected(num_chunks=0, freed_bytes=0)
    with store.collecting(progress=progress) as writer:
        before_bytes = _pack_bytes(store)
        live = _live(store)
        num_chunks = store.index.keep_only(
            {digest for digests in live.values() for digest in digests}, models=live
        )
        _remove_strays(store)
        packs = store.index.packs()
        progress.stage("compacting the chunk store", total=len(packs))
        for pack in packs:
            _settle(store, pack, writer)
            progress.advance()
        return Collected(num_chunks=num_chunks, freed_bytes=before_bytes - _pack_bytes(store))


def _live(store: ChunkStore) -> dict[str, list[str]]:
    """Return the digests of each registered directory that has a manifest."""
    live = {}
    for path in store.index.models():
        directory = store.root.resolve() / path
        if has_manifest(directory):
            live[path] = [chunk.digest for chunk in read_manifest(directory).chunks]
    return live


def _remove_strays(store: ChunkStore) -> None:
    """Remove packs that the index has given up: a collection was killed before their names went."""
    known = {store.pack_path(number) for number in store.index.packs()}
    for file in (store.root / "packs").glob("*.pack"):
        if file not in known:
            file.unlink()


def _settle(store: ChunkStore, pack: int, writer: PackWriter) -> None:
    chunks = store.index.chunks_of_pack(pack)
    file = store.pack_path(pack)
    size = _allocated(file) if file.exists() else 0
    live_bytes = sum(aligned(at.num_bytes, PAGE_BYTES) for at in chunks.values())
    if chunks and size - live_bytes <= _WORTH_COMPACTING * size:
        return
    if chunks:
        store.index.move(_copied(store, chunks, writer))
        writer.let_go_if_full()
    store.index.drop_pack(pack)
    file.unlink(missing_ok=True)


def _copied(
    store: ChunkStore, chunks: dict[str, Location], writer: PackWriter
) -> dict[str, Location]:
    """Copy chunks, in their order, to other packs; a damaged one stops it."""
    buffer = memoryview(bytearray(MAX_CHUNK_BYTES))
    moved = {}
    try:
        with store.opened([(digest, at.num_bytes) for digest, at in chunks.items()]) as opened:
            for digest, at in chunks.items():
                content = buffer[: at.num_bytes]
                opened.read_intact(digest, content)
                moved[digest] = writer.append(content, in_step_with=at.start)
    except CorruptWeights as error:
        raise CorruptWeights(
            f"{error.message}; deepseek models verify tells which models use it: remove them or "
            "import them again"
        ) from error
    writer.flush()
    return moved


def _pack_bytes(store: ChunkStore) -> int:
    return sum(_allocated(file) for file in (store.root / "packs").glob("*.pack"))


def _allocated(file: Path) -> int:
    """Return the room that a file takes: holes take none."""
    return file.stat().st_blocks * 512
