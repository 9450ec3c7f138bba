"""Reading a model out of a chunk store: as mapped memory, or chunk by chunk into a caller's.

    reader = open_model(directory)
    memory = reader.map()                      # zero copy; sealed chunks are opened into it
    for chunk in reader.chunks(into=...):      # into a pinned pool, in the order of first use
        ...                                    # leave the loop to cancel

Both give the model's *image* (`deepseek.weights.store.manifest.Image`): every tensor in one piece
at `reader.image.tensors[name].start`. Digests are checked on the way in; a model that fails is
refused with the names of tensor, chunk and pack.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek.core.errors import ConfigurationError, CorruptWeights
from deepseek.weights.store.chunk_store import ChunkCopy, ChunkStore, OpenChunks
from deepseek.weights.store.keys.base import KeySource
from deepseek.weights.store.manifest import (
    TAG_BYTES,
    ChunkPlace,
    Manifest,
    image_of,
    read_manifest,
    store_of,
)
from deepseek.weights.store.side_by_side import Run, map_side_by_side, populate

if TYPE_CHECKING:
    from deepseek.weights.store.sealing import ChunkCipher

_AGAIN = "import the model again from its source, which replaces it"
_CHECKERS = min(4, os.cpu_count() or 1)
"""Digests run at 4.5 GB/s a core; more than four outrun any disk."""
_PIECE_BYTES = 16 << 20
_AHEAD = 4

_checked: set[ChunkCopy] = set()
"""What this process has found intact."""


class Verify(StrEnum):
    """When a chunk's digest is compared with its name."""

    ONCE = "once"
    """The first time that this process meets the chunk."""
    ALWAYS = "always"
    """Each time that it is read or mapped."""
    NEVER = "never"
    """Not at all: what the disk returns is believed. A sealed chunk's tag is checked even so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a model is read."""

    verify: Verify = Verify.ONCE
    keys: KeySource | None = None
    """Hands out the keys of sealed models; there are none to open without it."""


DEFAULT_READING = Reading()

Into = Callable[[ChunkPlace], memoryview]
"""Returns the writable memory, of `num_bytes`, that a chunk's content is put into."""


def open_model(directory: Path, *, keys: KeySource | None = None) -> "ModelReader":
    """Return the reader of a model directory that has a manifest.

    `keys` hands out the keys of sealed models. Raises `CorruptWeights` for a manifest that cannot
    be trusted, `ConfigurationError` where a key is needed and there is none.
    """
    manifest = read_manifest(directory)
    cipher = None
    if manifest.sealing is not None:
        key_id = manifest.sealing.key_id
        if keys is None:
            raise ConfigurationError(
                f"{directory}: the weights are sealed with key {key_id!r}; say where it is "
                "(models.NAME.key)",
                param="key",
            )
        # Needed for sealed models alone: other workers do without the cryptography package.
        from deepseek.weights.store.sealing import ChunkCipher  # noqa: PLC0415

        cipher = ChunkCipher.of(manifest, keys(key_id))
    store = ChunkStore(store_of(manifest, directory))
    return ModelReader(store, manifest, cipher=cipher)


class ModelReader:
    """One model of a store; cheap to keep, safe to use from several threads."""

    def __init__(
        self, store: ChunkStore, manifest: Manifest, *, cipher: "ChunkCipher | None" = None
    ) -> None:
        self.manifest = manifest
        self.image = image_of(manifest)
        """Where chunks and tensors stand."""
        self._store = store
        self._cipher = cipher

    @property
    def is_sealed(self) -> bool:
        return self._cipher is not None

    def map(self, *, verify: Verify = Verify.ONCE) -> memoryview:
        """Return memory that holds the image, checked as `verify` says.

        Of an open model it is the packs themselves, mapped: nothing is copied, and pages are shared
        between processes. All of it is read before this returns, but with `Verify.NEVER`, which
        returns at once and leaves reading to who touches it. Of a sealed model it is memory of its
        own. It is private: writing to it changes no file. It lives as long as a view of it does.
        """
        if self.is_sealed:
            memory = map_side_by_side([], num_bytes=self.image.num_bytes)
            for _ in self.chunks(lambda chunk: memory[chunk.start : chunk.end], verify=verify):
                pass
            return memory
        with self._opened() as chunks:
            memory = map_side_by_side(list(self._runs(chunks)), num_bytes=self.image.num_bytes)
            if verify is not Verify.NEVER:
                self._read_mapped(memory, chunks, verify)
        return memory

    def chunks(
        self, into: Into, *, verify: Verify = Verify.ONCE, ahead: int = _AHEAD
    ) -> Iterator[ChunkPlace]:
        """Put the content of one chunk after the other into memory, and yield it when it is there.

        In first-use order. `into` is called in that order too, for up to `ahead` chunks before the
        first of them is yielded: one is read while others are checked. Leaving the loop cancels:
        what has begun (at most `ahead` chunks) is finished, nothing else is read. Raises
        `CorruptWeights` for the first chunk that is damaged; the caller then discards what it has.
        """
        with self._opened() as chunks, _reader() as reader, _checkers() as checkers:
            under_way: deque[tuple[ChunkPlace, Future[None]]] = deque()
            for chunk in self.image.chunks:
                if len(under_way) == ahead:
                    yield _finished(under_way)
                content = into(chunk)
                stored = content
                if self.is_sealed:
                    stored = memoryview(bytearray(chunk.num_bytes + TAG_BYTES))
                reading = reader.submit(chunks.read, chunk.digest, stored)
                work = checkers.submit(
                    self._admit,
                    chunk,
                    chunks,
                    reading,
                    stored=stored,
                    content=content,
                    verify=verify,
                )
                under_way.append((chunk, work))
            while under_way:
                yield _finished(under_way)

    def _opened(self) -> AbstractContextManager[OpenChunks]:
        return self._store.opened(self.manifest.sizes)

    def _runs(self, chunks: OpenChunks) -> Iterator[Run]:
        """Yield what lies in one piece both in a pack and in the image."""
        run: Run | None = None
        for chunk in self.image.chunks:
            if not chunk.num_bytes:
                continue
            at, file = chunks.location(chunk.digest), chunks.file(chunk.digest)
            if run and run.file == file and chunk.start - run.at == at.start - run.start:
                run.num_bytes = chunk.end - run.at
                continue
            if run:
                yield run
            run = Run(at=chunk.start, file=file, start=at.start, num_bytes=chunk.num_bytes)
        if run:
            yield run

    def _read_mapped(self, memory: memoryview, chunks: OpenChunks, verify: Verify) -> None:
        """Read piece after piece, and check what is due of each while the next is read."""
        due = {c.index for c in self.image.chunks if self._is_due(c, chunks, verify)}
        if not due:
            populate(memory, 0, self.image.num_bytes)
            return

        def check(piece: list[ChunkPlace], reading: Future[None]) -> None:
            reading.result()
            for chunk in piece:
                if chunk.index in due:
                    self._compare(chunk, chunks, memory[chunk.start : chunk.end])

        with _reader() as reader, _checkers() as checkers:
            checks = [
                checkers.submit(check, piece, reader.submit(_populate, memory, piece))
                for piece in _pieces(self.image.chunks)
            ]
            try:
                for work in checks:
                    work.result()
            except CorruptWeights:
                reader.shutdown(wait=False, cancel_futures=True)
                checkers.shutdown(wait=False, cancel_futures=True)
                raise

    def _admit(
        self,
        chunk: ChunkPlace,
        chunks: OpenChunks,
        reading: Future[None],
        *,
        stored: memoryview,
        content: memoryview,
        verify: Verify,
    ) -> None:
        """Wait until a chunk is there, check it, and open it if it is sealed."""
        reading.result()
        if self._is_due(chunk, chunks, verify):
            self._compare(chunk, chunks, stored)
        if self._cipher is not None:
            try:
                self._cipher.open(stored, content, index=chunk.index)
            except CorruptWeights as error:
                raise self._fault(chunk, f"{chunks.where(chunk.digest)} {error.message}") from error

    def _is_due(self, chunk: ChunkPlace, chunks: OpenChunks, verify: Verify) -> bool:
        if verify is Verify.ONCE:
            return chunks.copy_of(chunk.digest) not in _checked
        return verify is Verify.ALWAYS

    def _compare(self, chunk: ChunkPlace, chunks: OpenChunks, stored: memoryview) -> None:
        try:
            chunks.require_intact(chunk.digest, stored)
        except CorruptWeights as error:
            raise self._fault(chunk, f"{error.message}; {_AGAIN}") from error
        _checked.add(chunks.copy_of(chunk.digest))

    def _fault(self, chunk: ChunkPlace, fault: str) -> CorruptWeights:
        names = self.image.tensors_in(chunk) or ["(none)"]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return CorruptWeights(
            f"model {self.manifest.model!r}, tensor {names[0]!r}{more}: chunk {chunk.index} of "
            f"{len(self.image.chunks)}: {fault}"
        )


def _reader() -> ThreadPoolExecutor:
    """Return one thread: files are read ahead by the system, and two readers would spoil it.

    In order, one reads 2.3-2.6 GB/s from this project's reference disk, two 1.0-1.5.
    """
    return ThreadPoolExecutor(1)


def _checkers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_CHECKERS)


def _pieces(chunks: Iterable[ChunkPlace]) -> Iterator[list[ChunkPlace]]:
    """Yield neighbours that are read together: what one call costs shall not count."""
    piece: list[ChunkPlace] = []
    for chunk in chunks:
        piece.append(chunk)
        if chunk.end - piece[0].start >= _PIECE_BYTES:
            yield piece
            piece = []
    if piece:
        yield piece


def _populate(memory: memoryview, piece: list[ChunkPlace]) -> None:
    populate(memory, piece[0].start, piece[-1].end - piece[0].start)


def _finished(under_way: deque[tuple[ChunkPlace, Future[None]]]) -> ChunkPlace:
    chunk, work = under_way.popleft()
    work.result()
    return chunk
