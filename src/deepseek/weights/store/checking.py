"""Reads every chunk of a model, or all that a store has, and compares it with its digest.

Works on stored bytes, so sealed chunks are checked without their key.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deepseek.core.errors import CorruptWeights
from deepseek.weights.progress import Progress
from deepseek.weights.store.chunk_store import ChunkStore
from deepseek.weights.store.cutting import MAX_CHUNK_BYTES
from deepseek.weights.store.manifest import ChunkEntry, Manifest, image_of, read_manifest, store_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One chunk that is not what its name says."""

    model: str
    tensors: tuple[str, ...]
    message: str
    """Names chunk and pack."""


def require_chunks(manifest: Manifest, directory: Path) -> None:
    """Raise `CorruptWeights` where a model's chunks are missing or cut off; reads no content."""
    store = ChunkStore(store_of(manifest, directory))
    with store.opened(manifest.sizes):
        pass


class StoreChecker:
    """Checks models one after the other; a chunk that several share is read once."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._buffer = memoryview(bytearray(MAX_CHUNK_BYTES))
        self._results: dict[tuple[Path, str], str | None] = {}

    def check(self, name: str, directory: Path) -> list[Fault]:
        """Return what is wrong with a model's chunks.

        Raises `CorruptWeights` where the manifest itself cannot be trusted.
        """
        manifest = read_manifest(directory)
        store = ChunkStore(store_of(manifest, directory))
        self._progress.stage(f"{name}: verifying", total=manifest.stored_bytes, unit="bytes")
        return list(self._faults(name, manifest, store))

    def _faults(self, name: str, manifest: Manifest, store: ChunkStore) -> Iterator[Fault]:
        image = image_of(manifest)
        for place, entry in zip(image.chunks, manifest.chunks, strict=True):
            key = (store.root, entry.digest)
            if key not in self._results:
                self._results[key] = self._look_at(store, entry)
            self._progress.advance(entry.num_bytes)
            problem = self._results[key]
            if problem is not None:
                tensors = tuple(image.tensors_in(place))
                yield Fault(model=name, tensors=tensors, message=f"chunk {place.index}: {problem}")

    def _look_at(self, store: ChunkStore, chunk: ChunkEntry) -> str | None:
        """Return what is wrong with a chunk, None where nothing is."""
        try:
            with store.opened([(chunk.digest, chunk.num_bytes)]) as chunks:
                chunks.read_intact(chunk.digest, self._buffer[: chunk.num_bytes])
        except CorruptWeights as error:
            return error.message
        except OSError as error:  # a bad block: the disk itself says so
            return f"chunk {chunk.digest[:16]} cannot be read ({error})"
        return None
