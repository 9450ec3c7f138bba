"""Model directories of random numbers, and importing them in small chunks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from deepseek.weights.progress import Progress, SilentProgress
from deepseek.weights.store.chunk_store import ChunkStore
from deepseek.weights.store.importing import SealingKey, import_weights
from deepseek.weights.store.manifest import Manifest
from deepseek.weights.store.reader import ModelReader

CHUNK_BYTES = 4 * 4096
"""Small, so that small models have many; tensors of a page's half and more are not gathered."""
Tensors = Mapping[str, npt.NDArray[Any]]


def random_tensors(*, layers: int = 3, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """A small decoder's tensors: an embedding of several chunks, layers, a norm, a head."""
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (300, 64), "model.norm.weight": (64,)}
    for n in range(layers):
        shapes[f"model.layers.{n}.input_layernorm.weight"] = (64,)
        shapes[f"model.layers.{n}.self_attn.q_proj.weight"] = (64, 64)
        shapes[f"model.layers.{n}.mlp.down_proj.weight"] = (64, 100)
    shapes["lm_head.weight"] = (300, 64)
    return {name: rng.standard_normal(s, dtype=np.float32) for name, s in shapes.items()}


def write_source(directory: Path, tensors: Tensors, **config: Any) -> Path:
    """Write what an import reads: config.json and model.safetensors."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "random", **config}))
    save_file(dict(tensors), directory / "model.safetensors")
    return directory


def import_model(
    store: ChunkStore,
    source: Path,
    place: Path,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    commit_bytes: int = 4 * CHUNK_BYTES,
    seal: SealingKey | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Import `source`; its manifest and config.json stand at `place` then."""
    progress = progress or SilentProgress()
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_bytes((source / "config.json").read_bytes())
    with store.importing(needed_bytes=0, purpose="a test", progress=progress) as writer:
        return import_weights(
            (source / "model.safetensors",),
            directory=place,
            place=place,
            model=place.name,
            writer=writer,
            progress=progress,
            chunk_bytes=chunk_bytes,
            commit_bytes=commit_bytes,
            seal=seal,
        )


def tensors_in(reader: ModelReader, memory: Any) -> dict[str, npt.NDArray[Any]]:
    """Read every tensor out of an image."""
    kinds = {"F32": np.float32, "F16": np.float16, "U8": np.uint8, "I64": np.int64}
    found = {}
    for name, place in reader.image.tensors.items():
        content = bytes(memory[place.start : place.end])
        found[name] = np.frombuffer(content, dtype=kinds[place.dtype]).reshape(place.shape)
    return found


def assert_same(found: Tensors, expected: Tensors) -> None:
    """Fail unless every byte of every tensor is as it was."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert found[name].dtype == value.dtype, name
        assert found[name].tobytes() == value.tobytes(), name


def pack_bytes(store: ChunkStore) -> int:
    """Return the room that all packs take; holes take none."""
    return sum(512 * file.stat().st_blocks for file in (store.root / "packs").iterdir())
