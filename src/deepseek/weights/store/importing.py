"""From safetensors files into a chunk store: in pieces, with progress, to be resumed after a kill.

What an import has done stands in the index's journal under a key made of the source files (path,
size, time, inode) and the plan of the chunks; the same import finds it there and neither reads nor
writes those chunks again. A sealed import is not resumed: each has a data key of its own.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3

from deepseek.core.errors import CorruptWeights, ModelSourceError
from deepseek.weights.progress import Progress
from deepseek.weights.safetensors_header import TensorEntry as SourceEntry
from deepseek.weights.safetensors_header import read_layout
from deepseek.weights.store.chunk_store import ChunkWriter
from deepseek.weights.store.cutting import CHUNK_BYTES, CutChunk, cut
from deepseek.weights.store.manifest import (
    TAG_BYTES,
    ChunkEntry,
    Manifest,
    Sealing,
    TensorEntry,
    config_digest,
    image_starts,
    revision_of,
    write_manifest,
)
from deepseek.weights.store.packs import read_fully

if TYPE_CHECKING:
    from deepseek.weights.store.sealing import ChunkCipher

_COMMIT_BYTES = 64 << 20
"""What a kill may make an import do again; less of it would wait longer for the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealingKey:
    """What the chunks of a sealed model are encrypted with."""

    key_id: str
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _SourceTensor:
    file: Path
    start: int
    entry: SourceEntry

    @property
    def num_bytes(self) -> int:
        return self.entry.end - self.entry.start


def import_weights(
    weight_files: tuple[Path, ...],
    *,
    directory: Path,
    place: Path,
    model: str,
    writer: ChunkWriter,
    progress: Progress,
    chunk_bytes: int = CHUNK_BYTES,
    commit_bytes: int = _COMMIT_BYTES,
    seal: SealingKey | None = None,
) -> Manifest:
    """Store the tensors of safetensors files and write the manifest into `directory`.

    `directory` has the model's `config.json`; `place` is where it will be once it is complete,
    which keeps the chunks from being collected. Raises `CorruptWeights` or `ModelSourceError` for
    the source, `OSError` for the store.
    """
    source = _read_headers(weight_files)
    chunks = cut({n: t.num_bytes for n, t in source.items()}, chunk_bytes=chunk_bytes)
    draft = _draft(source, chunks, directory=directory, place=place, model=model, writer=writer)
    if seal is not None:
        draft = _sealed_draft(draft, seal)
    draft = msgspec.structs.replace(draft, revision=revision_of(draft))
    run = _Import(
        weight_files,
        source,
        chunks,
        writer=writer,
        commit_bytes=commit_bytes,
        salt=draft.sealing.salt if draft.sealing else "",
    )
    cipher = None if seal is None else _cipher(draft, seal)
    progress.stage(f"{model}: importing", total=run.num_bytes, unit="bytes")
    writer.store.index.register(writer.store.path_to(place))
    digests = run.store_chunks(cipher, progress)
    manifest = msgspec.structs.replace(
        draft,
        chunks=tuple(
            ChunkEntry(digest=digest, num_bytes=entry.num_bytes)
            for digest, entry in zip(digests, draft.chunks, strict=True)
        ),
    )
    write_manifest(manifest, directory)
    return manifest


class _Import:
    """One run over the planned chunks."""

    def __init__(
        self,
        files: tuple[Path, ...],
        source: Mapping[str, _SourceTensor],
        chunks: list[CutChunk],
        *,
        writer: ChunkWriter,
        commit_bytes: int,
        salt: str,
    ) -> None:
        self._files = files
        self._source = source
        self._chunks = chunks
        self._writer = writer
        self._commit_bytes = commit_bytes
        self._identity = _identity(files)
        self.num_bytes = sum(chunk.num_bytes for chunk in chunks)
        self._starts = image_starts([chunk.num_bytes for chunk in chunks])
        plan = [
            [(str(source[p.tensor].file), source[p.tensor].start + p.start, p.num_bytes, p.offset)
             for p in chunk.pieces]
            for chunk in chunks
        ]  # fmt: skip
        self._key = blake3(json.dumps([self._identity, plan, salt]).encode()).digest()

    def store_chunks(self, cipher: "ChunkCipher | None", progress: Progress) -> list[str]:
        """Return the digests of all chunks, which are in the store then."""
        done = self._done()
        uncommitted = 0
        for position, content in self._contents(skip=done, progress=progress):
            stored = content if cipher is None else cipher.seal(content, index=position)
            start = self._starts[position]
            done[position] = self._writer.put(memoryview(stored), position=position, start=start)
            uncommitted += len(stored)
            if uncommitted >= self._commit_bytes:
                self._writer.commit(self._key)
                uncommitted = 0
            progress.advance(len(content))
        self._writer.commit(self._key)
        if _identity(self._files) != self._identity:
            raise ModelSourceError(
                f"{self._files[0].parent} changed while it was imported; import it again"
            )
        return [done[position] for position in range(len(self._chunks))]

    def _done(self) -> dict[int, str]:
        """Return what a killed run of the same import has left, as far as it is still there."""
        index = self._writer.store.index
        journal = index.journal(self._key)
        present = index.locate(journal.values())
        return {position: digest for position, digest in journal.items() if digest in present}

    def _contents(
        self, *, skip: Mapping[int, str], progress: Progress
    ) -> Iterator[tuple[int, memoryview]]:
        """Yield the chunks that are to be stored; each is good until the next is asked for."""
        longest = max((chunk.num_bytes for chunk in self._chunks), default=0)
        buffer = memoryview(bytearray(longest))
        with ExitStack() as stack:
            opened = {file: stack.enter_context(file.open("rb")) for file in self._files}
            for position, chunk in enumerate(self._chunks):
                if position in skip:
                    progress.advance(chunk.num_bytes)
                    continue
                content = buffer[: chunk.num_bytes]
                end = 0
                for piece in chunk.pieces:
                    content[end : piece.offset] = bytes(piece.offset - end)
                    end = piece.offset + piece.num_bytes
                    at = self._source[piece.tensor]
                    file = opened[at.file].fileno()
                    if not read_fully(file, content[piece.offset : end], at.start + piece.start):
                        raise CorruptWeights(f"{at.file} is cut off: fetch the file again")
                yield position, content


def _read_headers(files: tuple[Path, ...]) -> dict[str, _SourceTensor]:
    tensors: dict[str, _SourceTensor] = {}
    for file in files:
        layout = read_layout(file)
        for name, entry in layout.tensors.items():
            start = layout.data_start + entry.start
            tensors[name] = _SourceTensor(file=file, start=start, entry=entry)
    return tensors


def _identity(files: tuple[Path, ...]) -> list[tuple[str, int, int, int]]:
    stats = [(str(file.resolve()), file.stat()) for file in files]
    return [(path, stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in stats]


def _draft(
    source: Mapping[str, _SourceTensor],
    chunks: list[CutChunk],
    *,
    directory: Path,
    place: Path,
    model: str,
    writer: ChunkWriter,
) -> Manifest:
    """Return the manifest as far as it is known before a byte is read."""
    starts = {
        piece.tensor: (index, piece.offset)
        for index, chunk in enumerate(chunks)
        for piece in chunk.pieces
        if piece.start == 0
    }
    return Manifest(
        model=model,
        revision="",
        store=writer.store.seen_from(place),
        config=config_digest(directory),
        tensors={
            name: TensorEntry(
                dtype=source[name].entry.dtype,
                shape=source[name].entry.shape,
                num_bytes=source[name].num_bytes,
                chunk=index,
                offset=offset,
            )
            for name, (index, offset) in starts.items()
        },
        chunks=tuple(ChunkEntry(digest="", num_bytes=chunk.num_bytes) for chunk in chunks),
    )


def _sealed_draft(draft: Manifest, key: SealingKey) -> Manifest:
    return msgspec.structs.replace(
        draft,
        sealing=Sealing(key_id=key.key_id, salt=os.urandom(32).hex()),
        chunks=tuple(
            ChunkEntry(digest="", num_bytes=chunk.num_bytes + TAG_BYTES) for chunk in draft.chunks
        ),
    )


def _cipher(draft: Manifest, seal: SealingKey) -> "ChunkCipher":
    # Imported here: other imports do without the cryptography package.
    from deepseek.weights.store.sealing import ChunkCipher  # noqa: PLC0415

    return ChunkCipher.of(draft, seal.key)
