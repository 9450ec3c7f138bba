"""What decides the bytes of a model's prepared weights, in one short name."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
from blake3 import blake3

from deepseek.weights.model_directory import ModelDirectory
from deepseek.weights.store.manifest import config_digest

_NUM_DIGITS = 40


def weights_identity(directory: ModelDirectory) -> str | None:
    """Return what changes with a directory's weights or its config, reading no weights.

    Of a model in a chunk store it is the chunks' digests: two models of the same content are the
    same. Of files it is path, size and time of last change. None for sealed weights: what is
    prepared from them would lie open on the disk.
    """
    manifest = directory.manifest
    if manifest is None:
        files = [_state_of(file) for file in directory.weight_files]
        return _digest((files, config_digest(directory.path)))
    if manifest.sealing is not None:
        return None
    digests = [chunk.digest for chunk in manifest.chunks]
    return _digest((digests, manifest.tensors, manifest.config))


def prepared_key(identity: str, choices: Mapping[str, str]) -> str:
    """Return the name of the file for these weights, prepared as `choices` say."""
    return _digest((identity, dict(choices)))[:_NUM_DIGITS]


def _state_of(file: Path) -> tuple[str, int, int]:
    state = file.stat()
    return str(file.resolve()), state.st_size, state.st_mtime_ns


def _digest(value: object) -> str:
    return blake3(msgspec.json.encode(value, order="sorted")).hexdigest()
