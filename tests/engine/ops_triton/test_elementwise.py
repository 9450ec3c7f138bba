import pytest
import torch

from deepseek.engine.ops.reference import ReferenceOps
from deepseek.engine.ops.triton.ops import TritonOps
from tests.engine.ops_triton.steps import Shape, random_step, relative_error

DTYPES = {torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 5e-4}
REFERENCE = ReferenceOps()
SHAPE = Shape(num_heads=6, num_kv_heads=2, key_dim=16, value_dim=16, block_tokens=8)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@each_dtype
@pytest.mark.parametrize("width", [64, 100, 576])
def test_norms_equal_the_reference(
    dtype: torch.dtype, width: int, ops: TritonOps, device: torch.device
) -> None:
    states, weight = drawn(5, width).to(device, dtype), drawn(width, seed=1).to(device, dtype)
    expected = REFERENCE.rms_norm(states.float(), weight.float(), 1e-5)
    assert relative_error(ops.rms_norm(states, weight, 1e-5), expected) < DTYPES[dtype]


@each_dtype
def test_adding_norm_updates_the_residual(
    dtype: torch.dtype, ops: TritonOps, device: torch.device
) -> None:
    states, residual = (drawn(5, 96, seed=seed).to(device, dtype) for seed in (0, 1))
    weight = drawn(96, seed=2).to(device, dtype)
    total = residual + states
    actual = ops.add_rms_norm(states, residual, weight, 1e-6)
    assert relative_error(residual, total) < DTYPES[dtype]
    expected = REFERENCE.rms_norm(total.float(), weight.float(), 1e-6)
    assert relative_error(actual, expected) < DTYPES[dtype]


@each_dtype
def test_norm_reads_strided_rows(dtype: torch.dtype, ops: TritonOps, device: torch.device) -> None:
    wide, weight = drawn(4, 96).to(device, dtype), drawn(64, seed=1).to(device, dtype)
    expected = REFERENCE.rms_norm(wide[:, :64].float(), weight.float(), 1e-5)
    assert relative_error(ops.rms_norm(wide[:, :64], weight, 1e-5), expected) < DTYPES[dtype]


@each_dtype
@pytest.mark.parametrize("width", [32, 1500])
def test_gated_silu_equals_the_reference(
    dtype: torch.dtype, width: int, ops: TritonOps, device: torch.device
) -> None:
    gate_up = drawn(3, 2 * width).to(device, dtype)
    expected = REFERENCE.gated_silu(gate_up.float())
    assert relative_error(ops.gated_silu(gate_up), expected) < DTYPES[dtype]


@each_dtype
@pytest.mark.parametrize("normed", [False, True])
def test_rotation_and_stores_equal_the_reference(
    dtype: torch.dtype, normed: bool, ops: TritonOps, device: torch.device
) -> None:
    step = random_step(
        [(1, 9), (1, 0), (20, 30)], SHAPE, dtype=dtype, device=device, num_padding_rows=2
    )
    wide = step.widened()
    qkv = drawn(24, (6 + 2 * 2) * 16).to(device, dtype)
    angles = drawn(64, 8, seed=1)
    rotary = torch.cat((angles.cos(), angles.sin()), dim=-1).to(device)
    norms = tuple(drawn(16, seed=seed).to(device, dtype) for seed in (2, 3)) if normed else None
    wide_norms = None if norms is None else (norms[0].float(), norms[1].float())
    expected = REFERENCE.rotate_and_store(
        qkv.float(), rotary, wide.batch, wide.kv, num_heads=6, head_norms=wide_norms, eps=1e-6
    )
    actual = ops.rotate_and_store(
        qkv, rotary, step.batch, step.kv, num_heads=6, head_norms=norms, eps=1e-6
    )
    assert actual.is_contiguous()
    assert relative_error(actual, expected) < DTYPES[dtype]
    for ours, theirs in ((step.kv.keys, wide.kv.keys), (step.kv.values, wide.kv.values)):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert relative_error(ours.nan_to_num(), theirs.nan_to_num()) < DTYPES[dtype]


@each_dtype
def test_stores_equal_the_reference(
    dtype: torch.dtype, ops: TritonOps, device: torch.device
) -> None:
    step = random_step([(1, 9), (1, 0), (5, 30)], SHAPE, dtype=dtype, device=device)
    wide = step.widened()
    keys, values = drawn(7, 2, 32).to(device, dtype).chunk(2, dim=-1)
    ops.store(keys, values, step.batch, step.kv)
    REFERENCE.store(keys.float(), values.float(), wide.batch, wide.kv)
    assert torch.equal(step.kv.keys.nan_to_num(), wide.kv.keys.nan_to_num().to(dtype))
    assert torch.equal(step.kv.values.nan_to_num(), wide.kv.values.nan_to_num().to(dtype))
