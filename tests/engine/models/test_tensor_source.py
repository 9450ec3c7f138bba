"""Tensors out of chunks are those out of safetensors, and a model made of either is the same."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepseek.core.errors import CorruptWeights, UnsupportedModel
from deepseek.engine.linear import make_linear
from deepseek.engine.models.checkpoint import Checkpoint
from deepseek.engine.models.encoder import load_encoder
from deepseek.engine.models.registry import load_decoder
from deepseek.engine.models.tensor_source import ChunkSource, open_source
from deepseek.engine.ops.reference import ReferenceOps
from deepseek.weights.cache import ModelCache
from deepseek.weights.model_directory import open_model_directory
from deepseek.weights.store.reader import Reading, Verify, open_model
from tests.engine.models.paged import full_logits

PROMPT = [5, 300, 17, 2, 41, 99, 8]
DECODERS = ["llama", "gpt2", "qwen3_moe", "deepseek_v3"]


def chunked(directory: Path, tmp_path: Path) -> Path:
    return ModelCache(tmp_path / "home").add_chunks("m", directory)


@pytest.fixture
def llama(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    return chunked(tiny_llama_dir, tmp_path)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_out_of_chunks_gives_the_same_logits(
    family: str, dtype: torch.dtype, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source: Path = request.getfixturevalue(f"tiny_{family}_dir")
    logits = [
        full_logits(load_decoder(path, dtype=dtype, device="cpu", ops=ReferenceOps()), PROMPT)
        for path in (source, chunked(source, tmp_path))
    ]
    assert torch.equal(*logits)


@pytest.mark.parametrize("family", ["bert", "classifier", "mpnet"])
def test_an_encoder_out_of_chunks_gives_the_same_rows(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source: Path = request.getfixturevalue(f"tiny_{family}_dir")
    rows = []
    for path in (source, chunked(source, tmp_path)):
        directory = open_model_directory(path)
        encoder = load_encoder(directory, dtype=torch.float32, device="cpu", ops=ReferenceOps())
        rows.append(torch.from_numpy(encoder.encode([PROMPT, PROMPT[:3]])))
    assert torch.equal(*rows)


def test_every_tensor_is_the_same_and_none_is_copied(tiny_llama_dir: Path, llama: Path) -> None:
    source = open_source(llama)
    expected = load_file(tiny_llama_dir / "model.safetensors")
    assert set(source.order) == set(expected)
    starts = []
    for name, tensor in expected.items():
        found = source.tensor(name)
        assert torch.equal(found, tensor)
        assert (source.shape(name), source.dtype(name)) == (tuple(tensor.shape), "F32")
        assert found.data_ptr() % 64 == 0
        assert found.data_ptr() == source.tensor(name).data_ptr()
        starts.append(found.data_ptr())
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    packs = [line[0].split("-") for line in maps if line[-1].startswith(str(llama.parents[1]))]
    inside = [any(int(a, 16) <= start < int(b, 16) for a, b in packs) for start in starts]
    assert all(inside), "each tensor is the pack's own memory"


def test_a_checkpoint_keeps_mapped_memory_and_converts_what_it_must(llama: Path) -> None:
    source = open_source(llama)
    name = "model.embed_tokens.weight"
    same = Checkpoint(llama, dtype=torch.float32, device="cpu", source=source).tensor(name)
    assert same.data_ptr() == source.tensor(name).data_ptr()
    other = Checkpoint(llama, dtype=torch.bfloat16, device="cpu", source=source).tensor(name)
    assert other.dtype is torch.bfloat16
    assert torch.equal(other, source.tensor(name).bfloat16())


def test_tensors_outlive_their_source(tiny_llama_dir: Path, llama: Path) -> None:
    name = "model.norm.weight"
    tensor = open_source(llama).tensor(name)
    shutil.rmtree(llama.parents[1])
    assert torch.equal(tensor, load_file(tiny_llama_dir / "model.safetensors")[name])


def test_odd_tensors_come_back(tiny_llama_dir: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_llama_dir, tmp_path / "source"))
    tensors = load_file(directory / "model.safetensors")
    tensors["empty"] = torch.zeros(0, 3, dtype=torch.float16)
    tensors["number"] = torch.tensor(7, dtype=torch.int64)
    tensors["float8"] = torch.arange(5).to(torch.float8_e4m3fn)
    tensors["yes"] = torch.tensor([True, False])
    save_file(tensors, directory / "model.safetensors")
    source = open_source(chunked(directory, tmp_path))
    for name in ("empty", "number", "yes"):
        assert torch.equal(source.tensor(name), tensors[name])
    assert torch.equal(source.tensor("float8").float(), tensors["float8"].float())


def test_nothing_is_loaded_of_a_damaged_model(llama: Path) -> None:
    with (llama.parents[1] / "chunks" / "packs" / "000001.pack").open("r+b") as pack:
        pack.write(b"damage")
    for verify in (Verify.ONCE, Verify.ALWAYS):
        with pytest.raises(CorruptWeights, match=r"tensor 'model\.embed_tokens\.weight'.*digest"):
            open_source(llama, Reading(verify=verify))
    with pytest.raises(CorruptWeights, match="digest differs"):
        load_decoder(llama, dtype=torch.float32, device="cpu", ops=ReferenceOps())
    ChunkSource(open_model(llama), verify=Verify.NEVER)


def test_a_number_format_that_is_not_read_is_refused(llama: Path) -> None:
    reader = open_model(llama)
    source = ChunkSource(reader)
    source._places = {  # a format of tomorrow
        name: type(place)(dtype="F4", shape=place.shape, start=0, num_bytes=place.num_bytes)
        for name, place in reader.image.tensors.items()
    }
    with pytest.raises(UnsupportedModel, match="stored as F4"):
        source.tensor("model.norm.weight")


def test_layers_packed_from_mapped_memory_compute_the_same(llama: Path) -> None:
    source = open_source(llama)
    weight = source.tensor("model.layers.0.mlp.up_proj.weight")
    rows = torch.randn(3, weight.shape[1])
    assert torch.equal(make_linear(weight)(rows), make_linear(weight.clone())(rows))
