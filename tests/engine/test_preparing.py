"""Prepared weights: the same answers from a mapped file, an ordinary load where it is no use."""

import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from deepseek.core.errors import CorruptWeights
from deepseek.core.requests import EncodeRequest, GenerateRequest, SamplingParams
from deepseek.core.wire import Encoded, ModelInfo, ModelSpec, TokenDelta, WorkerSpec
from deepseek.engine.base import Engine, Prepares
from deepseek.engine.linear import prepared_layer_class
from deepseek.engine.load_pace import LoadCancelled, LoadPace
from deepseek.engine.loading import load_engine
from deepseek.weights.cache import ModelCache
from deepseek.weights.model_directory import open_model_directory
from deepseek.weights.prepared.prepared_file import StoredTensor, open_prepared, read_origin
from deepseek.weights.prepared.shelf import PreparedShelf
from tests.tiny_models import add_mtp_head

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]  # the first may build the kernels

DECODERS = [
    *("llama", "mistral", "qwen2", "qwen3", "gpt2", "qwen3_moe", "mixtral"),
    *("deepseek_v2", "deepseek_v3"),
]
ENCODERS = ["bert", "classifier"]
PROMPT = [38, 39, 40, 7, 300]
KINDS = [("bfloat16", None), ("float32", "int8")]


def require_kernel(dtype: str, quantization: str | None) -> None:
    kind = getattr(torch, dtype)
    if prepared_layer_class(quantization, dtype=kind, device="cpu") is None:
        pytest.skip(f"this processor runs {quantization or dtype} layers in an opaque layout")


class Loads:
    """Loads one model again and again, as a worker does."""

    def __init__(self, path: Path, shelf: Path, **model: Any) -> None:
        self.shelf = shelf
        self.path = path
        options = {"dtype": "bfloat16", "min_resident": 0, **model}
        task = open_model_directory(path).task
        self.model = ModelSpec(name="m", path=str(path), task=task, **options)
        self.engines: list[Engine] = []

    def spec(self, budget_bytes: int = 1 << 30) -> WorkerSpec:
        return WorkerSpec(
            pool="p",
            socket_path="",
            device="cpu",
            models=[self.model],
            kv_cache_bytes=4 << 20,
            prepared_dir=str(self.shelf),
            prepared_bytes=budget_bytes,
        )

    def load(
        self, budget_bytes: int = 1 << 30, pace: LoadPace | None = None
    ) -> tuple[Engine, ModelInfo]:
        engine, info = load_engine(self.model, self.spec(budget_bytes), device="cpu", pace=pace)
        self.engines.append(engine)
        return engine, info

    def answers(self, budget_bytes: int = 1 << 30) -> list[Any]:
        """Load the model, and return what it answers."""
        engine, _ = self.load(budget_bytes)
        return answers(engine)

    def prepare(self) -> list[Any]:
        """Load the model so that it is prepared; return what it answers."""
        engine, _ = self.load()
        found = answers(engine)
        assert isinstance(engine, Prepares)
        until(lambda: not engine.is_being_prepared)
        return found

    @property
    def files(self) -> list[Path]:
        return sorted(self.shelf.glob("*")) if self.shelf.exists() else []


def answers(engine: Engine) -> list[Any]:
    """Return a greedy answer's tokens, or the rows of two sequences."""
    if hasattr(engine, "max_model_len") and engine.load().kv_tokens_capacity:
        sampling = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
        engine.add(GenerateRequest(id=1, model="m", prompt_token_ids=PROMPT, sampling=sampling))
    else:
        engine.add(EncodeRequest(id=1, model="m", sequences=[PROMPT, PROMPT[:2]]))
    found: list[Any] = []
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output, TokenDelta | Encoded), output
            found += output.token_ids if isinstance(output, TokenDelta) else [output.data]
    assert found
    return found


def until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def blank_weights(path: Path) -> None:
    """Destroy what is in the weights file, and leave everything that is seen from outside."""
    file = path / "model.safetensors"
    state = file.stat()
    with file.open("r+b") as opened:
        header_bytes = int.from_bytes(opened.read(8), "little")
        opened.seek(8 + header_bytes)
        opened.write(bytes(state.st_size - 8 - header_bytes))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.fixture
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a tiny model, by its family; Llama where none is named."""
    family = getattr(request, "param", "llama")
    source: Path = request.getfixturevalue(f"tiny_{family}_dir")
    return Path(shutil.copytree(source, tmp_path / "model"))


@pytest.fixture
def loads(model: Path, tmp_path: Path) -> Loads:
    require_kernel("bfloat16", None)
    return Loads(model, tmp_path / "prepared")


@pytest.mark.parametrize("model", DECODERS + ENCODERS, indirect=True)
@pytest.mark.parametrize(("dtype", "quantization"), KINDS)
def test_a_mapped_model_answers_as_the_one_it_was_made_from(
    model: Path, dtype: str, quantization: str | None, tmp_path: Path
) -> None:
    require_kernel(dtype, quantization)
    loads = Loads(model, tmp_path / "prepared", dtype=dtype, quantization=quantization)
    expected = Loads(model, tmp_path / "none", dtype=dtype, quantization=quantization).answers(0)
    assert loads.prepare() == expected
    (file,) = loads.files
    blank_weights(model)
    assert loads.answers() == expected, "nothing was read but the prepared file"
    assert loads.files == [file]


def test_a_prediction_head_is_prepared_with_its_model(
    tiny_deepseek_v3_dir: Path, tmp_path: Path
) -> None:
    require_kernel("bfloat16", None)
    path = Path(shutil.copytree(tiny_deepseek_v3_dir, tmp_path / "model"))
    add_mtp_head(path)
    loads = Loads(path, tmp_path / "prepared", speculation="mtp")
    expected = loads.prepare()
    without = Loads(path, tmp_path / "prepared")
    without.prepare()
    assert len(loads.files) == 2
    blank_weights(path)
    assert loads.answers() == expected
    assert without.answers() == expected


def test_a_model_of_a_chunk_store_shares_its_file_with_its_copies(
    model: Path, tmp_path: Path
) -> None:
    require_kernel("bfloat16", None)
    cache = ModelCache(tmp_path / "home")
    one, other = (cache.add_chunks(name, model) for name in ("one", "other"))
    expected = Loads(one, tmp_path / "prepared").prepare()
    loads = Loads(other, tmp_path / "prepared")
    (file,) = loads.files
    for pack in (tmp_path / "home" / "chunks" / "packs").iterdir():
        pack.write_bytes(bytes(pack.stat().st_size))
    assert loads.answers() == expected
    assert loads.files == [file]


def test_what_a_mapped_model_takes_is_what_the_packed_one_takes(loads: Loads) -> None:
    loads.prepare()
    _, packed = Loads(loads.path, loads.shelf).load(0)
    _, mapped = loads.load()
    assert mapped.weights_bytes == packed.weights_bytes


@pytest.mark.parametrize("change", ["weights", "config"])
def test_other_weights_or_another_config_are_prepared_anew(
    loads: Loads, change: str, tiny_llama_dir: Path
) -> None:
    expected = loads.prepare()
    if change == "weights":
        blank_weights(loads.path)
        os.utime(loads.path / "model.safetensors")
        assert loads.prepare() != expected
    else:
        config = loads.path / "config.json"
        config.write_text(config.read_text() + "\n")
        assert loads.prepare() == expected
    assert len(loads.files) == 2


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: data[: len(data) // 2], "holds .* bytes of tensors where its header says"),
        (lambda data: data[:5], "has only 5 bytes"),
        (lambda data: data.replace(b"bf16-tiles/1", b"bf16-tiles/0", 1), "checksum"),
        (lambda data: data.replace(b'"BF16"', b'"U16" ', 1), "checksum"),
        (lambda data: data[:-3] + bytes(255 - byte for byte in data[-3:]), "digest differs"),
    ],
    ids=["cut off", "nearly empty", "layout", "number format", "content"],
)
def test_a_damaged_file_is_named_and_the_model_loaded_as_ever(
    loads: Loads, damage: Callable[[bytes], bytes], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = loads.prepare()
    (file,) = loads.files
    content = file.read_bytes()
    damaged = damage(content)
    assert damaged != content
    file.unlink()  # a file of its own: this process has found the other one intact
    file.write_bytes(damaged)
    assert loads.prepare() == expected
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    (warning,) = warnings
    assert str(file) in warning
    assert re.search(told, warning)
    assert file.read_bytes() == content, "written anew"


def test_the_file_of_another_model_is_not_taken(
    loads: Loads, tiny_qwen3_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = loads.prepare()
    (own,) = loads.files
    Loads(tiny_qwen3_dir, loads.shelf).prepare()
    (other,) = set(loads.files) - {own}
    own.unlink()
    other.rename(own)
    assert loads.answers() == expected
    assert "is that of" in caplog.text


def test_a_file_that_knows_less_than_the_model_asks_for_is_not_used_in_part(
    loads: Loads, caplog: pytest.LogCaptureFixture
) -> None:
    expected = loads.prepare()
    shelf = PreparedShelf(loads.shelf)
    (entry,) = shelf.entries()
    file = open_prepared(entry.path, entry.key)
    memory = file.map()[file.data_start :]
    about = msgspec.json.decode(file.about)
    del about["has"]["lm_head.weight"]
    shelf.add(
        entry.key,
        {
            name: StoredTensor(dtype=e.dtype, shape=e.shape, data=memory[e.start : e.end])
            for name, e in file.tensors.items()
        },
        origin=read_origin(entry.path),
        about=msgspec.json.encode(about).decode(),
        budget_bytes=1 << 30,
        is_wanted=lambda: True,
    )
    assert loads.prepare() == expected
    assert "knows nothing of 'lm_head.weight'" in caplog.text
    blank_weights(loads.path)
    assert loads.answers() == expected, "it has been written anew"


def test_a_model_that_is_itself_damaged_is_refused_as_ever(loads: Loads) -> None:
    file = loads.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CorruptWeights):
        loads.load()
    assert loads.files == []


@pytest.mark.parametrize(
    "settings",
    [{"min_resident": 1}, {"dtype": "float32"}],
    ids=["it stays", "oneDNN's layout"],
)
def test_what_cannot_be_mapped_or_is_not_loaded_again_is_not_written(
    loads: Loads, settings: dict[str, Any]
) -> None:
    other = Loads(loads.path, loads.shelf, **settings)
    other.prepare()
    assert loads.files == []


def test_a_model_that_stays_is_mapped_where_it_has_been_prepared(loads: Loads) -> None:
    expected = loads.prepare()
    blank_weights(loads.path)
    assert Loads(loads.path, loads.shelf, min_resident=1).answers() == expected


def test_transformers_own_code_reads_its_own_files(tiny_mpnet_dir: Path, tmp_path: Path) -> None:
    loads = Loads(tiny_mpnet_dir, tmp_path / "prepared")
    loads.prepare()
    assert loads.files == []


def test_a_model_that_leaves_ends_its_writing(loads: Loads) -> None:
    engine, _ = loads.load()
    assert isinstance(engine, Prepares)
    assert engine.is_being_prepared
    engine.close()
    assert not engine.is_being_prepared
    time.sleep(0.5)
    assert loads.files == []


def test_a_shelf_that_cannot_be_written_costs_one_warning(
    loads: Loads, caplog: pytest.LogCaptureFixture
) -> None:
    loads.shelf.write_text("no directory")
    with caplog.at_level(logging.WARNING):
        first = loads.prepare()
        assert loads.prepare() == first
    (warning,) = [record.getMessage() for record in caplog.records]
    assert str(loads.shelf) in warning


def test_a_mapped_load_can_be_cancelled_and_tells_how_far_it_is(loads: Loads) -> None:
    loads.prepare()
    total = loads.files[0].stat().st_size
    pace = LoadPace(total_bytes=total)
    loads.load(pace=pace)
    assert pace.part > 0.9
    pace.cancel()
    with pytest.raises(LoadCancelled):
        loads.load(pace=pace)
