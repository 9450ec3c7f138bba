"""The model cache: one directory per model under `$DEEPSEEK_HOME/models`, complete or absent.

A model is built in a temporary directory beside its place and renamed into it, under a file lock:
two processes that want the same model build it once, and what a killed one left is removed by
the next.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deepseek.core.errors import DeepseekError, ModelSourceError
from deepseek.core.requests import Task
from deepseek.weights import storage
from deepseek.weights.conversion import GGUF_EXPANSION, convert_gguf
from deepseek.weights.model_directory import open_model_directory
from deepseek.weights.prepared.shelf import PreparedShelf
from deepseek.weights.progress import Progress, SilentProgress
from deepseek.weights.store.chunk_store import ChunkStore
from deepseek.weights.store.importing import SealingKey, import_weights
from deepseek.weights.store.manifest import has_manifest

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt",
            "*.pth", "*.h5", "*.msgpack", "*.gguf", "onnx", "openvino", ".*")  # fmt: skip
"""What stands beside a chunked model's manifest no more: its weights, in whatever format."""
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedModel:
    """One entry of the cache; `error` says why it cannot be used, if so."""

    name: str
    path: Path
    """Where the files are: for a registered directory the directory itself."""
    is_link: bool
    size_bytes: int
    task: Task | None
    error: str | None = None


class ModelCache:
    """The cache below `root`; its methods raise errors of `core.errors`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._models = root / "models"

    @classmethod
    def default(cls) -> "ModelCache":
        """Return the cache at `$DEEPSEEK_HOME`, else `~/.cache/deepseek`."""
        home = os.environ.get("DEEPSEEK_HOME")
        return cls(Path(os.path.expanduser(home or "~/.cache/deepseek")))

    @property
    def chunk_store(self) -> ChunkStore:
        """The store of the models that `add_chunks` adds."""
        return ChunkStore(self.root / "chunks")

    @property
    def prepared(self) -> PreparedShelf:
        """The prepared weights of whatever CPU pools have served."""
        return PreparedShelf(self.root / "prepared")

    @property
    def free_bytes(self) -> int:
        """What the cache's file system has left."""
        return storage.free_bytes(self._models)

    def path(self, name: str) -> Path:
        """Return where the model of this name is or would be."""
        return self._models / name

    def __contains__(self, name: str) -> bool:
        return _NAME.match(name) is not None and os.path.lexists(self.path(name))

    def list(self) -> list[CachedModel]:
        """Return the entries by name, broken ones too."""
        if not self._models.is_dir():
            return []
        names = sorted(entry.name for entry in self._models.iterdir())
        return [self._describe(name) for name in names if not name.startswith(".")]

    def add_path(
        self,
        name: str,
        source: Path,
        *,
        copy: bool = False,
        progress: Progress | None = None,
    ) -> Path:
        """Register a model directory by a link, or its copy, or the conversion of a GGUF file."""
        progress = progress or SilentProgress()
        source = Path(os.path.expanduser(source)).absolute()
        self._require_new(name)
        if source.suffix == ".gguf" and source.is_file():
            needed = GGUF_EXPANSION * source.stat().st_size

            def fill(directory: Path) -> None:
                convert_gguf(source, directory, progress)

            return self.build(name, fill, needed_bytes=needed, progress=progress)
        open_model_directory(source)
        if copy and has_manifest(source):
            raise ModelSourceError(
                f"{source} has its weights in a chunk store, which a copy of the directory would "
                "be without; register it without --copy"
            )
        if copy:
            needed = storage.tree_bytes(source)

            def fill(directory: Path) -> None:
                progress.stage(f"copying {source}")
                shutil.copytree(source, directory, dirs_exist_ok=True)

            return self.build(name, fill, needed_bytes=needed, progress=progress)
        with self._locked(name, needed_bytes=0, progress=progress):
            self.path(name).symlink_to(source, target_is_directory=True)
        return self.path(name)

    def add_chunks(
        self,
        name: str,
        source: Path,
        *,
        seal: SealingKey | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Import a model directory's weights into the chunk store, and copy what else it holds.

        After a kill the same call goes on where the import ended; with `seal`, which encrypts the
        chunks, it begins anew.
        """
        progress = progress or SilentProgress()
        source = Path(os.path.expanduser(source)).absolute()
        self._require_new(name)
        directory = open_model_directory(source)
        if directory.manifest is not None:
            raise ModelSourceError(
                f"{source} has its weights in a chunk store already; register it without --chunks"
            )
        store = self.chunk_store
        purpose = f"the chunks of model {name!r}"
        with store.importing(
            needed_bytes=directory.weights_bytes, purpose=purpose, progress=progress
        ) as writer:

            def fill(work: Path) -> None:
                _copy_without_weights(source, work)
                import_weights(
                    directory.weight_files,
                    directory=work,
                    place=self.path(name),
                    model=name,
                    writer=writer,
                    progress=progress,
                    seal=seal,
                )

            return self.build(name, fill, needed_bytes=0, progress=progress)

    def build(
        self,
        name: str,
        fill: Callable[[Path], None],
        *,
        needed_bytes: int,
        progress: Progress,
    ) -> Path:
        """Return the model's directory, calling `fill` with an empty one where it is absent.

        The filled directory is opened before it takes its place, so that a broken model never
        enters the cache. `needed_bytes` must be free; `StorageFull` says so before any work.
        """
        with self._locked(name, needed_bytes=needed_bytes, progress=progress):
            place = self.path(name)
            if os.path.lexists(place):  # another process built it while this one waited
                return place
            storage.require_room(self._models, needed_bytes, purpose=f"model {name!r}")
            work = self._models / f".{name}.{os.getpid()}.partial"
            work.mkdir()
            try:
                fill(work)
                open_model_directory(work)
                _settle(work)
                work.rename(place)
            finally:
                shutil.rmtree(work, ignore_errors=True)
            return place

    def remove(self, name: str) -> None:
        """Remove a model; of a registered directory only the link."""
        if name not in self:
            names = ", ".join(model.name for model in self.list()) or "nothing"
            raise ModelSourceError(f"no model {name!r} in the cache; it holds {names}")
        with self._locked(name, needed_bytes=0, progress=SilentProgress()):
            place = self.path(name)
            if place.is_symlink():
                place.unlink()
                return
            # Renamed first: a removal that is killed half way leaves no half model.
            doomed = self._models / f".{name}.{os.getpid()}.partial"
            place.rename(doomed)
            shutil.rmtree(doomed)

    def _require_new(self, name: str) -> None:
        if name in self:
            raise ModelSourceError(
                f"{name!r} is in the cache already; choose another name or remove it first "
                f"(deepseek models remove {name})"
            )

    @contextmanager
    def _locked(self, name: str, *, needed_bytes: int, progress: Progress) -> Iterator[None]:
        """Hold the name's lock; leftovers of killed holders are gone inside."""
        if not _NAME.match(name):
            raise ModelSourceError(
                f"{name!r} cannot be a model's name; use letters, digits, '.', '_' and '-'"
            )
        purpose = f"model {name!r}"
        with storage.explaining_storage_faults(self._models, needed_bytes, purpose=purpose):
            self._models.mkdir(parents=True, exist_ok=True)
            with (self._models / f".{name}.lock").open("w") as lock:
                _acquire(lock.fileno(), name, progress)
                for leftover in self._models.glob(f".{name}.*.partial"):
                    shutil.rmtree(leftover, ignore_errors=True)
                yield

    def _describe(self, name: str) -> CachedModel:
        place = self.path(name)
        is_link = place.is_symlink()
        task: Task | None = None
        error: str | None = None
        size_bytes = storage.tree_bytes(place)
        try:
            directory = open_model_directory(place)
            task = directory.task
            if directory.manifest is not None:
                size_bytes += directory.weights_bytes
        except DeepseekError as fault:
            error = fault.message
        return CachedModel(
            name=name,
            path=place.readlink() if is_link else place,
            is_link=is_link,
            size_bytes=size_bytes,
            task=task,
            error=error,
        )


def _copy_without_weights(source: Path, target: Path) -> None:
    """Copy a model directory without its weights; small models inside it (dense heads) stay."""
    ignored = shutil.ignore_patterns(*_WEIGHTS)

    def ignore(directory: str, names: list[str]) -> set[str]:
        return ignored(directory, names) if Path(directory) == source else set()

    shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignore)


def _acquire(lock: int, name: str, progress: Progress) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        progress.stage(f"{name}: waiting for another process that prepares it")
        fcntl.flock(lock, fcntl.LOCK_EX)


def _settle(directory: Path) -> None:
    """Make files readable for whom the umask allows, and safe against a power failure."""
    umask = os.umask(0)
    os.umask(umask)
    for root, _, names in os.walk(directory):
        for name in names:
            file = Path(root) / name
            file.chmod(0o666 & ~umask)  # safetensors writes 0600
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
