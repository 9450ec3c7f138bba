"""Removes prepared weights that no load would take any more."""

from dataclasses import dataclass
from pathlib import Path

from deepseek.core.errors import DeepseekError
from deepseek.weights.model_directory import open_model_directory
from deepseek.weights.prepared.identity import weights_identity
from deepseek.weights.prepared.prepared_file import read_origin
from deepseek.weights.prepared.shelf import PreparedShelf


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectedFiles:
    """What was removed."""

    num_files: int
    freed_bytes: int


def collect_prepared(shelf: PreparedShelf) -> CollectedFiles:
    """Remove the files whose model is gone or has other weights now, and what is half written.

    A file that several models share goes with the one that it was made from; the next load of
    another makes it again. Servers may go on.
    """
    num_files, freed_bytes = 0, shelf.remove_leftovers()
    for entry in shelf.entries():
        if not _is_current(entry.path):
            shelf.remove(entry.key)
            num_files += 1
            freed_bytes += entry.num_bytes
    return CollectedFiles(num_files=num_files, freed_bytes=freed_bytes)


def _is_current(path: Path) -> bool:
    try:
        origin = read_origin(path)
        directory = open_model_directory(Path(origin.model))
    except DeepseekError:
        return False
    return weights_identity(directory) == origin.identity
