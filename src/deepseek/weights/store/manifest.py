"""`model.chunks.json`: which chunks a model is made of, and where in them its tensors are.

It stands in a model directory in place of `model.safetensors`. A manifest that was changed, belongs
to another `config.json`, or contradicts itself is refused when it is read.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from blake3 import blake3

from deepseek.core.errors import CorruptWeights
from deepseek.weights.safetensors_header import ITEM_BYTES
from deepseek.weights.store.cutting import MAX_CHUNK_BYTES, PAGE_BYTES, aligned

MANIFEST_FILE = "model.chunks.json"
TAG_BYTES = 16
"""By which a sealed chunk is longer than what is in it."""


Hex256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class ChunkEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A chunk as it is stored."""

    digest: Hex256
    """BLAKE3 of the stored bytes."""
    num_bytes: int


class TensorEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tensor: where it begins, and how it is read; it goes on in the chunks that follow."""

    dtype: str
    """As safetensors spells it."""
    shape: tuple[int, ...]
    num_bytes: int
    chunk: int
    offset: int
    """In the chunk's content, which for a sealed chunk is what comes out of it."""


class Sealing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the chunks are encrypted."""

    cipher: Literal["AES-256-GCM"] = "AES-256-GCM"
    key_id: str
    salt: Hex256
    """32 random bytes: no two imports use the same data key."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file's content."""

    format: Literal["deepseek-chunks/1"] = "deepseek-chunks/1"
    model: str
    revision: str
    """BLAKE3 of everything but the chunks' digests, `store` and `checksum`: see `revision_of`."""
    store: str
    """The store's directory, relative to the manifest's."""
    config: str
    """BLAKE3 of the `config.json` that the weights belong to."""
    sealing: Sealing | None = None
    tensors: dict[str, TensorEntry]
    chunks: tuple[ChunkEntry, ...]
    checksum: str = ""
    """BLAKE3 of the file with this field empty."""

    @property
    def sizes(self) -> list[tuple[str, int]]:
        """Digest and stored length of each chunk."""
        return [(chunk.digest, chunk.num_bytes) for chunk in self.chunks]

    @property
    def stored_bytes(self) -> int:
        """What the model's chunks take in packs, shared ones included."""
        return sum(chunk.num_bytes for chunk in self.chunks)


class ChunkPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk and where its content stands in the model's image."""

    index: int
    digest: str
    start: int
    num_bytes: int
    """Of its content: without the tag of a sealed chunk."""

    @property
    def end(self) -> int:
        return self.start + self.num_bytes


class TensorPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor and where it stands in the model's image, in one piece."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int

    @property
    def end(self) -> int:
        return self.start + self.num_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A model as it lies in memory: its chunks in order, each from the next page on.

    A large tensor's chunks are whole pages but for the last, so every tensor is in one piece.
    """

    chunks: tuple[ChunkPlace, ...]
    tensors: Mapping[str, TensorPlace]
    """In first-use order."""
    num_bytes: int

    def tensors_in(self, chunk: ChunkPlace) -> list[str]:
        """Return the names of the tensors that have bytes in a chunk."""
        return [
            name
            for name, place in self.tensors.items()
            if place.start < chunk.end and chunk.start < place.end
        ]


def image_of(manifest: Manifest) -> Image:
    """Return where everything stands; `CorruptWeights` where the manifest contradicts itself."""
    try:
        return _image_of(manifest)
    except ValueError as error:
        raise CorruptWeights(
            f"the manifest of model {manifest.model!r} contradicts itself: {error}; {_AGAIN}"
        ) from error


def image_starts(sizes: Sequence[int]) -> list[int]:
    """Return where in the image chunks of these sizes begin; the last number is its end."""
    return [0, *accumulate(aligned(size, PAGE_BYTES) for size in sizes)]


def revision_of(manifest: Manifest) -> str:
    """Return what names this version of the model's structure.

    It is known before the first chunk is sealed, and is part of what every sealed chunk is
    authenticated with.
    """
    sizes = [chunk.num_bytes for chunk in manifest.chunks]
    parts = (manifest.format, manifest.model, manifest.config, manifest.sealing)
    return _blake3(msgspec.json.encode((*parts, manifest.tensors, sizes), order="sorted"))


def checksum_of(manifest: Manifest) -> str:
    """Return the checksum that the manifest has to carry."""
    return _blake3(msgspec.json.encode(msgspec.structs.replace(manifest, checksum="")))


def config_digest(directory: Path) -> str:
    """Return the digest of a model directory's `config.json`."""
    return _blake3((directory / "config.json").read_bytes())


def has_manifest(directory: Path) -> bool:
    """Say whether a model directory's weights are in a chunk store."""
    return (directory / MANIFEST_FILE).exists()


def read_manifest(directory: Path) -> Manifest:
    """Return the manifest of a model directory; `CorruptWeights` where it cannot be trusted."""
    file = directory / MANIFEST_FILE
    try:
        manifest = msgspec.json.decode(file.read_bytes(), type=Manifest)
    except OSError as error:
        raise CorruptWeights(f"{file} cannot be read ({error.strerror})") from error
    except (ValueError, msgspec.DecodeError) as error:
        raise CorruptWeights(f"{file} is damaged ({error}); {_AGAIN}") from error
    if manifest.checksum != checksum_of(manifest) or manifest.revision != revision_of(manifest):
        raise CorruptWeights(f"{file} was changed: its checksum does not fit; {_AGAIN}")
    if manifest.config != config_digest(directory):
        raise CorruptWeights(
            f"{file} is the manifest of model {manifest.model!r} (revision "
            f"{manifest.revision[:12]}), which had another config.json than the one beside it; "
            "put the manifest's own back, or import the model again"
        )
    return manifest


def write_manifest(manifest: Manifest, directory: Path) -> None:
    """Write the file with its checksum: complete, or not at all."""
    complete = msgspec.structs.replace(manifest, checksum=checksum_of(manifest))
    file = directory / MANIFEST_FILE
    partial = file.with_suffix(".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(complete), indent=1))
    partial.rename(file)


def store_of(manifest: Manifest, directory: Path) -> Path:
    """Return the directory of the store that holds the chunks."""
    return Path(os.path.normpath(directory.resolve() / manifest.store))


_AGAIN = "import the model again (deepseek models add NAME --path DIR --chunks)"


def _image_of(manifest: Manifest) -> Image:
    tag_bytes = TAG_BYTES if manifest.sealing else 0
    sizes = [chunk.num_bytes - tag_bytes for chunk in manifest.chunks]
    for index, (size, chunk) in enumerate(zip(sizes, manifest.chunks, strict=True)):
        if size < 0 or chunk.num_bytes > MAX_CHUNK_BYTES:
            raise ValueError(f"chunk {index} is impossible")
    starts = image_starts(sizes)
    chunks = tuple(
        ChunkPlace(index=index, digest=entry.digest, start=starts[index], num_bytes=sizes[index])
        for index, entry in enumerate(manifest.chunks)
    )
    by_position = sorted(manifest.tensors.items(), key=lambda item: (item[1].chunk, item[1].offset))
    tensors = {name: _place(name, entry, chunks) for name, entry in by_position}
    return Image(chunks=chunks, tensors=tensors, num_bytes=starts[-1])


def _place(name: str, entry: TensorEntry, chunks: tuple[ChunkPlace, ...]) -> TensorPlace:
    """Check that the tensor's chunks lie without a gap, and that it ends inside the last."""
    item_bytes = ITEM_BYTES.get(entry.dtype)
    wanted = None if item_bytes is None else math.prod(entry.shape) * item_bytes
    if wanted not in (None, entry.num_bytes) or min(entry.shape, default=0) < 0:
        raise ValueError(f"tensor {name!r}: its size contradicts its shape")
    if not (0 <= entry.chunk < len(chunks) and entry.offset >= 0 and entry.num_bytes >= 0):
        raise ValueError(f"tensor {name!r} has no place in the chunks")
    start = chunks[entry.chunk].start + entry.offset
    end = start + entry.num_bytes
    index = entry.chunk
    while index < len(chunks) and chunks[index].end < end:
        if chunks[index].num_bytes % PAGE_BYTES:
            break
        index += 1
    if index == len(chunks) or chunks[index].end < end or start > chunks[entry.chunk].end:
        raise ValueError(f"tensor {name!r} is not inside its chunks")
    return TensorPlace(dtype=entry.dtype, shape=entry.shape, start=start, num_bytes=entry.num_bytes)


def _blake3(data: bytes) -> str:
    return blake3(data).hexdigest()
