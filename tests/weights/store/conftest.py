"""A store and one imported model."""

from pathlib import Path

import pytest

from deepseek.weights.store.chunk_store import ChunkStore
from tests.weights.store.models import Tensors, import_model, random_tensors, write_source


@pytest.fixture
def store(tmp_path: Path) -> ChunkStore:
    return ChunkStore(tmp_path / "chunks")


@pytest.fixture
def tensors() -> Tensors:
    return random_tensors()


@pytest.fixture
def source(tmp_path: Path, tensors: Tensors) -> Path:
    return write_source(tmp_path / "source", tensors)


@pytest.fixture
def model(store: ChunkStore, source: Path, tmp_path: Path) -> Path:
    """The directory of a model in the store."""
    import_model(store, source, tmp_path / "models" / "m")
    return tmp_path / "models" / "m"
