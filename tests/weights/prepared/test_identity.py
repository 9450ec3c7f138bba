"""What two models must have in common to share prepared weights, and what files gc takes."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from deepseek.weights.cache import ModelCache
from deepseek.weights.model_directory import open_model_directory
from deepseek.weights.prepared.collection import collect_prepared
from deepseek.weights.prepared.identity import prepared_key, weights_identity
from deepseek.weights.prepared.prepared_file import Origin
from deepseek.weights.prepared.shelf import PreparedShelf
from deepseek.weights.store.manifest import Sealing
from tests.weights.prepared.test_shelf import tensors


def identity(path: Path) -> str:
    found = weights_identity(open_model_directory(path))
    assert found is not None
    return found


@pytest.fixture
def model(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))


def test_files_are_known_by_their_state_and_config_by_its_content(model: Path) -> None:
    before = identity(model)
    assert identity(model) == before
    (model / "tokenizer_config.json").write_text("{}")
    assert identity(model) == before, "no weights depend on it"
    os.utime(model / "model.safetensors", (1, 1))
    later = identity(model)
    assert later != before
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    assert identity(model) not in (before, later)


def test_chunks_are_known_by_their_content(
    model: Path, tiny_mistral_dir: Path, tmp_path: Path
) -> None:
    cache = ModelCache(tmp_path / "home")
    one, copy = (identity(cache.add_chunks(name, model)) for name in ("one", "copy"))
    assert one == copy
    assert identity(cache.add_chunks("other", tiny_mistral_dir)) != one


def test_what_is_sealed_is_not_prepared(model: Path, tmp_path: Path) -> None:
    directory = open_model_directory(ModelCache(tmp_path / "home").add_chunks("one", model))
    assert directory.manifest is not None
    sealing = Sealing(key_id="team-a", salt="0" * 64)
    sealed = msgspec.structs.replace(directory.manifest, sealing=sealing)
    assert weights_identity(replace(directory, manifest=sealed)) is None


def test_every_choice_has_a_key_of_its_own() -> None:
    keys = {
        prepared_key("weights", {"dtype": "torch.bfloat16", "quantization": "None"}),
        prepared_key("weights", {"dtype": "torch.bfloat16", "quantization": "int8"}),
        prepared_key("others", {"dtype": "torch.bfloat16", "quantization": "None"}),
    }
    assert len(keys) == 3


def test_gc_takes_what_was_made_from_weights_that_are_no_more(model: Path, tmp_path: Path) -> None:
    shelf = PreparedShelf(tmp_path / "prepared")
    gone = Path(shutil.copytree(model, tmp_path / "gone"))
    changed = Path(shutil.copytree(model, tmp_path / "changed"))
    for key, path in (("a" * 40, model), ("b" * 40, gone), ("c" * 40, changed)):
        shelf.add(
            key,
            tensors(),
            origin=Origin(model=str(path), identity=identity(path)),
            about="",
            budget_bytes=1 << 30,
            is_wanted=lambda: True,
        )
    (shelf.root / f"{'d' * 40}.safetensors").write_bytes(b"damaged")
    (shelf.root / f"{'e' * 40}.partial").write_bytes(b"left")
    shutil.rmtree(gone)
    os.utime(changed / "model.safetensors", (1, 1))
    collected = collect_prepared(shelf)
    assert collected.num_files == 3
    assert collected.freed_bytes > 200_000
    assert [path.name for path in shelf.root.iterdir()] == [f"{'a' * 40}.safetensors"]
    assert collect_prepared(shelf).num_files == 0
