"""A chunk store: a directory of packs, their index, and the locks that keep its users apart.

Importers share the store's lock, the collector of garbage takes it alone; readers take none,
because what they have opened stays as it is.
"""

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

from blake3 import blake3

from deepseek.core.errors import CorruptWeights
from deepseek.weights import storage
from deepseek.weights.progress import Progress
from deepseek.weights.store.cutting import MAX_CHUNK_BYTES
from deepseek.weights.store.index import Index, Location
from deepseek.weights.store.packs import PACK_BYTES, PackWriter, pack_path, read_fully

_LOOK_UPS = 3
"""A pack may be compacted away between look-up and opening: once, not again and again."""

ChunkCopy = tuple[int, int, int, int, str]


def digest_of(stored: memoryview) -> str:
    """Return the name of a chunk: BLAKE3 of its stored bytes."""
    digest: str = blake3(stored).hexdigest()
    return digest


class ChunkStore:
    """The store in a directory, which an import creates."""

    def __init__(self, root: Path, *, pack_bytes: int = PACK_BYTES) -> None:
        self.root = root
        self.index = Index(root / "index.sqlite")
        self._pack_bytes = pack_bytes

    @property
    def exists(self) -> bool:
        """Whether anything was ever imported."""
        return self.index.exists

    def pack_path(self, number: int) -> Path:
        """Return a pack's file."""
        return pack_path(self.root, number)

    def path_to(self, directory: Path) -> str:
        """Return the way to a model directory as the index keeps it: the two may move together."""
        return os.path.relpath(_resolved(directory), self.root.resolve())

    def seen_from(self, directory: Path) -> str:
        """Return the way from a model directory, as its manifest keeps it."""
        return os.path.relpath(self.root.resolve(), _resolved(directory))

    @contextmanager
    def importing(
        self, *, needed_bytes: int, purpose: str, progress: Progress
    ) -> Iterator["ChunkWriter"]:
        """Yield a writer, having created the store; no garbage is collected meanwhile.

        What is imported has to have its manifest in place when the block ends: an import that was
        broken off before can be resumed. Here and in the writer, `StorageFull` and
        `ConfigurationError` name `purpose` and how much it may need.
        """
        explaining = partial(
            storage.explaining_storage_faults, self.root, needed_bytes, purpose=purpose
        )
        with ExitStack() as stack:
            with explaining():
                (self.root / "packs").mkdir(parents=True, exist_ok=True)
                stack.enter_context(self._locked(fcntl.LOCK_SH, progress))
                self.index.create()
            packs = PackWriter(self.root, self.index, pack_bytes=self._pack_bytes)
            writer = ChunkWriter(self, stack.enter_context(packs), explaining)
            yield writer
            writer.forget_journal()

    @contextmanager
    def collecting(self, *, progress: Progress) -> Iterator[PackWriter]:
        """Yield a writer for chunks that move, once no importer is at work; none starts inside."""
        with (
            storage.explaining_storage_faults(self.root, 0, purpose="compacted chunks"),
            self._locked(fcntl.LOCK_EX, progress),
            PackWriter(
                self.root, self.index, pack_bytes=self._pack_bytes, continues=False
            ) as packs,
        ):
            yield packs

    @contextmanager
    def opened(self, sizes: Iterable[tuple[str, int]]) -> Iterator["OpenChunks"]:
        """Yield chunks, given by digest and length, readable whatever is collected meanwhile.

        Raises `CorruptWeights` where one is missing, of another length or beyond its pack's end.
        """
        wanted = list(sizes)
        with ExitStack() as stack:
            for attempt in range(_LOOK_UPS):
                located = self._locate_all([digest for digest, _ in wanted])
                try:
                    files = {
                        number: stack.enter_context(self._open_pack(number))
                        for number in dict.fromkeys(at.pack for at in located.values())
                    }
                    break
                except FileNotFoundError as error:
                    if attempt == _LOOK_UPS - 1:
                        raise CorruptWeights(
                            f"{error.filename} is missing from the chunk store; import the models "
                            "again"
                        ) from error
            chunks = OpenChunks(self, located, files)
            chunks.require_lengths(wanted)
            yield chunks

    def _locate_all(self, digests: list[str]) -> dict[str, Location]:
        located = self.index.locate(digests)
        missing = [digest for digest in digests if digest not in located]
        if missing:
            raise CorruptWeights(
                f"the chunk store {self.root} does not have chunk {missing[0][:16]}"
                f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}; import the model "
                "again, or put the store back (its directory stands in the manifest)"
            )
        return located

    @contextmanager
    def _open_pack(self, number: int) -> Iterator[int]:
        file = os.open(self.pack_path(number), os.O_RDONLY)
        try:
            yield file
        finally:
            os.close(file)

    @contextmanager
    def _locked(self, kind: int, progress: Progress) -> Iterator[None]:
        with (self.root / "store.lock").open("w") as lock:
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.stage("waiting for others that work on the chunk store")
                fcntl.flock(lock, kind)
            yield


class OpenChunks:
    """Chunks whose packs are open."""

    def __init__(
        self, store: ChunkStore, located: dict[str, Location], files: dict[int, int]
    ) -> None:
        self._store = store
        self._located = located
        self._files = files
        self._stats = {number: os.fstat(file) for number, file in files.items()}

    def require_lengths(self, sizes: Iterable[tuple[str, int]]) -> None:
        """Raise `CorruptWeights` where less can be read than these sizes say."""
        for digest, num_bytes in sizes:
            at = self._located[digest]
            if at.num_bytes != num_bytes:
                raise CorruptWeights(
                    f"{self.where(digest)} has another length ({at.num_bytes}) than the manifest "
                    f"says ({num_bytes}); import the model again"
                )
            pack_bytes = self._stats[at.pack].st_size
            if num_bytes and at.end > pack_bytes:
                raise CorruptWeights(
                    f"{self.where(digest)} is cut off: the pack has only {pack_bytes:,} bytes; "
                    "import the models again"
                )

    def location(self, digest: str) -> Location:
        """Return where a chunk is."""
        return self._located[digest]

    def file(self, digest: str) -> int:
        """Return the descriptor of the pack that a chunk is in."""
        return self._files[self._located[digest].pack]

    def copy_of(self, digest: str) -> ChunkCopy:
        """Return what tells this copy of a chunk from any other, of this or another store.

        A pack that anybody has written to since holds other copies: its time of change differs.
        """
        at = self._located[digest]
        stat = self._stats[at.pack]
        return stat.st_dev, stat.st_ino, stat.st_ctime_ns, at.start, digest

    def where(self, digest: str) -> str:
        """Return a chunk's name and place for a message."""
        at = self._located[digest]
        return f"chunk {digest[:16]} at {at.start} of {self._store.pack_path(at.pack)}"

    def read(self, digest: str, into: memoryview) -> None:
        """Fill `into`, of the chunk's stored length; raises `CorruptWeights` at a pack's end."""
        if not read_fully(self.file(digest), into, self.location(digest).start):
            raise CorruptWeights(f"{self.where(digest)} is cut off; import the models again")

    def require_intact(self, digest: str, stored: memoryview) -> None:
        """Raise `CorruptWeights` where a chunk's stored bytes are not those that it is named by."""
        if digest_of(stored) != digest:
            raise CorruptWeights(f"{self.where(digest)} is damaged: its digest differs")

    def read_intact(self, digest: str, into: memoryview) -> None:
        """Read a chunk and check it; raises `CorruptWeights` for whatever is wrong with it."""
        self.read(digest, into)
        self.require_intact(digest, into)

    def advise(self, digest: str) -> None:
        """Let the system read a chunk ahead; returns at once."""
        at = self.location(digest)
        os.posix_fadvise(self.file(digest), at.start, at.num_bytes, os.POSIX_FADV_WILLNEED)


class ChunkWriter:
    """Puts chunks into the store for one import; what was put is kept by `commit`."""

    def __init__(
        self,
        store: ChunkStore,
        packs: PackWriter,
        explaining: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.store = store
        self._packs = packs
        self._explaining = explaining
        self._import_keys: set[bytes] = set()
        self._new: dict[str, Location] = {}
        self._needed: dict[int, str] = {}
        self._buffer = memoryview(bytearray(MAX_CHUNK_BYTES))

    def put(self, data: memoryview, *, position: int, start: int) -> str:
        """Store a chunk that an import needs, once; returns its digest.

        `position` is its number, `start` its place in the model's image.
        A chunk that is there already is read and compared first: a new model is never built on
        damaged bytes, and the damaged copy is replaced for all that use it.
        """
        digest = digest_of(data)
        if digest not in self._new and not self._has(digest, len(data)):
            with self._explaining():
                self._new[digest] = self._packs.append(data, in_step_with=start)
        self._needed[position] = digest
        return digest

    def commit(self, import_key: bytes) -> None:
        """Make what was put outlive a kill and a power failure."""
        self._import_keys.add(import_key)
        with self._explaining():
            self._packs.flush()
            self.store.index.record(self._new, journal=self._needed, import_key=import_key)
            self._packs.let_go_if_full()
        self._new, self._needed = {}, {}

    def forget_journal(self) -> None:
        """Drop what resuming would need."""
        with self._explaining():
            for import_key in self._import_keys:
                self.store.index.forget_import(import_key)

    def _has(self, digest: str, num_bytes: int) -> bool:
        if not self.store.index.locate([digest]):
            return False
        try:
            with self.store.opened([(digest, num_bytes)]) as chunks:
                chunks.read_intact(digest, self._buffer[:num_bytes])
        except CorruptWeights:
            return False
        return True


def _resolved(directory: Path) -> Path:
    """Resolve all but the name: the directory may not be there yet."""
    return directory.parent.resolve() / directory.name
