"""Checkpoints whose matrices are float8 in scaled blocks, as the hub has them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepseek.core.errors import CorruptWeights, UnsupportedModel
from deepseek.engine.models.formats import BlockFp8Checkpoint, float32_tensor
from deepseek.engine.models.registry import load_decoder
from deepseek.engine.ops.reference import ReferenceOps
from tests.engine.models.paged import full_logits

BLOCK = 16
MATRIX = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"
GATE = "model.layers.1.mlp.gate.weight"
FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [BLOCK, BLOCK],
}


def quantized(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float8 (out, in) and float32 scales, one per block; edges are partial blocks."""
    scales = torch.empty(-(-weight.shape[0] // BLOCK), -(-weight.shape[1] // BLOCK))
    out = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            part = (
                slice(row * BLOCK, (row + 1) * BLOCK),
                slice(column * BLOCK, (column + 1) * BLOCK),
            )
            scales[row, column] = weight[part].abs().max() / 448
            out[part] = (weight[part] / scales[row, column]).to(torch.float8_e4m3fn)
    return out, scales


def is_quantized(name: str, value: torch.Tensor) -> bool:
    return (value.dim() == 2 and name.endswith("_proj.weight")) or name == MATRIX


@pytest.fixture
def fp8_dir(tiny_deepseek_v3_dir: Path, tmp_path: Path) -> Path:
    path = Path(shutil.copytree(tiny_deepseek_v3_dir, tmp_path / "fp8"))
    tensors = load_file(path / "model.safetensors")
    for name, value in list(tensors.items()):
        if is_quantized(name, value):
            tensors[name], tensors[f"{name}_scale_inv"] = quantized(value)
    save_file(tensors, path / "model.safetensors")
    set_quantization(path, FP8)
    return path


def set_quantization(path: Path, quantization: dict[str, object]) -> None:
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = quantization
    (path / "config.json").write_text(json.dumps(config))


def edit_tensors(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path / "model.safetensors")
    edit(tensors)
    save_file(tensors, path / "model.safetensors")


def open_checkpoint(path: Path, dtype: torch.dtype = torch.float32) -> BlockFp8Checkpoint:
    return BlockFp8Checkpoint(path, dtype=dtype, device="cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_are_multiplied_out(
    fp8_dir: Path, tiny_deepseek_v3_dir: Path, dtype: torch.dtype
) -> None:
    exact = load_file(tiny_deepseek_v3_dir / "model.safetensors")
    checkpoint = open_checkpoint(fp8_dir, dtype)
    names = [name for name, value in exact.items() if is_quantized(name, value)]
    assert any(size % BLOCK for name in names for size in exact[name].shape)
    for name in names:
        read = checkpoint.tensor(name, tuple(exact[name].shape))
        assert read.dtype is dtype
        # Half a step of a 3-bit mantissa, and of the smallest step below the block's largest.
        largest = exact[name].abs().max()
        torch.testing.assert_close(read.float(), exact[name], rtol=0.07, atol=float(largest) / 4e4)


def test_a_model_in_float8_computes_what_its_values_say(fp8_dir: Path, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(fp8_dir, tmp_path / "plain"))
    checkpoint = open_checkpoint(fp8_dir)
    names = [n for n in load_file(fp8_dir / "model.safetensors") if not n.endswith("_inv")]
    save_file({name: checkpoint.tensor(name) for name in names}, plain / "model.safetensors")
    config = json.loads((plain / "config.json").read_text())
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps(config))
    logits = [
        full_logits(
            load_decoder(path, dtype=torch.float32, device="cpu", ops=ReferenceOps()), [5, 6, 7]
        )
        for path in (fp8_dir, plain)
    ]
    assert torch.equal(*logits)


def test_what_decides_is_read_in_full_precision(tiny_deepseek_v3_dir: Path) -> None:
    exact = load_file(tiny_deepseek_v3_dir / "model.safetensors")[GATE]
    checkpoint = open_checkpoint(tiny_deepseek_v3_dir, torch.bfloat16)
    assert torch.equal(float32_tensor(checkpoint, GATE, tuple(exact.shape)), exact)
    assert checkpoint.tensor(GATE).dtype is torch.bfloat16


def test_float8_without_scales_is_refused(fp8_dir: Path) -> None:
    edit_tensors(fp8_dir, lambda tensors: tensors.pop(f"{MATRIX}_scale_inv"))
    with pytest.raises(CorruptWeights, match=f"'{MATRIX}_scale_inv' are missing"):
        open_checkpoint(fp8_dir).tensor(MATRIX)


def test_scales_of_other_blocks_are_refused(fp8_dir: Path) -> None:
    set_quantization(fp8_dir, {**FP8, "weight_block_size": [2 * BLOCK, 2 * BLOCK]})
    with pytest.raises(CorruptWeights, match=rf"'{MATRIX}_scale_inv' has shape \(3, 4\)"):
        open_checkpoint(fp8_dir).tensor(MATRIX)


def test_scales_that_the_config_does_not_mention_are_refused(fp8_dir: Path) -> None:
    config = json.loads((fp8_dir / "config.json").read_text())
    del config["quantization_config"]
    (fp8_dir / "config.json").write_text(json.dumps(config))
    with pytest.raises(CorruptWeights, match="weight_block_size"):
        open_checkpoint(fp8_dir).tensor(MATRIX)


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "fp8"},
        {"quant_method": "fp8", "weight_block_size": None},
    ],
)
def test_another_quantisation_is_refused(fp8_dir: Path, quantization: dict[str, object]) -> None:
    set_quantization(fp8_dir, quantization)
    with pytest.raises(UnsupportedModel, match="unquantised release"):
        open_checkpoint(fp8_dir)
