"""Operations on rows: norms, gate, rotation, stores."""

import pytest
import torch

from deepseek.engine.batch import LayerKV, StepBatch
from deepseek.engine.ops.base import Ops
from tests.engine.ops import definitions
from tests.engine.ops.steps import Heads, Part, make_batch, random_kv

WIDTHS = (576, 64, 50, 7)
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 8e-3}
HEADS = {
    "grouped": Heads(9, 3, 64, 64),
    "one for each": Heads(4, 4, 32, 32, block_tokens=32),
    "odd widths": Heads(6, 2, 36, 36),
}
PARTS = [Part(1, 5), Part(1, 40), Part(1, 0), Part(23, 57), Part(16, 16)]


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    error = (actual.cpu().double() - expected.double()).norm() / expected.double().norm()
    assert error < TOLERANCES[dtype]


def on(device: torch.device, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.to(device) for tensor in tensors]


def moved(batch: StepBatch, device: torch.device) -> StepBatch:
    fields = {name: getattr(batch, name) for name in StepBatch.__dataclass_fields__}
    tensors = {k: v.to(device) for k, v in fields.items() if isinstance(v, torch.Tensor)}
    return StepBatch(**{**fields, **tensors})


def draw(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [1, 5, 300])
def test_rms_norm(
    rows: int, width: int, ops: Ops, device: torch.device, dtype: torch.dtype
) -> None:
    wide, weight = draw(rows, width + 3, dtype=dtype), draw(width, dtype=dtype, seed=1)
    states = wide[:, :width]  # rows are strided
    expected = definitions.rms_norm(states, weight, 1e-5)
    on_device = wide.to(device)[:, :width]
    assert_close(ops.rms_norm(on_device, weight.to(device), 1e-5), expected, dtype)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [1, 5, 300])
def test_add_rms_norm_changes_the_residual_and_nothing_else(
    rows: int, width: int, ops: Ops, device: torch.device, dtype: torch.dtype
) -> None:
    states, residual = draw(rows, width, dtype=dtype), draw(rows, width, dtype=dtype, seed=1)
    weight = draw(width, dtype=dtype, seed=2)
    expected_sum = states + residual
    given = on(device, states, residual, weight)
    out = ops.add_rms_norm(given[0], given[1], given[2], 1e-6)
    assert_close(out, definitions.rms_norm(expected_sum, weight, 1e-6), dtype)
    assert torch.equal(given[1].cpu(), expected_sum)
    assert torch.equal(given[0].cpu(), states)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [1, 5, 300])
def test_gated_silu(
    rows: int, width: int, ops: Ops, device: torch.device, dtype: torch.dtype
) -> None:
    gate_up = draw(rows, 2 * width, dtype=dtype) * 8
    assert_close(ops.gated_silu(gate_up.to(device)), definitions.gated_silu(gate_up), dtype)


def test_gated_silu_of_large_gates_is_finite(ops: Ops, device: torch.device) -> None:
    gate = torch.tensor([[-1e4, -200.0, -90.0, 0.0, 90.0, 1e4]])
    out = ops.gated_silu(torch.cat((gate, torch.ones_like(gate)), dim=1).to(device))
    expected = torch.tensor([[0.0, 0.0, 0.0, 0.0, 90.0, 1e4]])
    assert torch.allclose(out.cpu(), expected, atol=1e-30, rtol=1e-6)


@pytest.mark.parametrize("has_norms", [False, True], ids=["plain", "head norms"])
@pytest.mark.parametrize("heads_name", HEADS)
def test_rotate_and_store(
    heads_name: str, has_norms: bool, ops: Ops, device: torch.device, dtype: torch.dtype
) -> None:
    heads = HEADS[heads_name]
    dim, count = heads.key_dim, heads.num_heads
    batch = make_batch(PARTS, heads.block_tokens, num_blocks=16, num_padding=3)
    kv = random_kv(heads, 16, dtype=dtype)
    before = LayerKV(kv.keys.clone(), kv.values.clone())
    qkv = draw(batch.num_rows, (count + 2 * heads.num_kv_heads) * dim, dtype=dtype)
    rotary = draw(64, dim, seed=1)
    norms = (draw(dim, dtype=dtype, seed=2), draw(dim, dtype=dtype, seed=3)) if has_norms else None
    given = LayerKV(*on(device, kv.keys, kv.values))
    out = ops.rotate_and_store(
        qkv.to(device),
        rotary.to(device),
        moved(batch, device),
        given,
        num_heads=count,
        head_norms=None if norms is None else (norms[0].to(device), norms[1].to(device)),
        eps=1e-6,
    )
    parts = qkv.view(batch.num_rows, -1, dim).split((count, *[heads.num_kv_heads] * 2), dim=1)
    queries, keys, values = (part.double() for part in parts)
    if norms is not None:
        queries = definitions.rms_norm(queries, norms[0], 1e-6)
        keys = definitions.rms_norm(keys, norms[1], 1e-6)
    assert out.is_contiguous()
    assert_close(out, definitions.rotate(queries, rotary, batch.positions), dtype)
    keys = definitions.rotate(keys, rotary, batch.positions)
    assert_stored(given.keys.cpu(), before.keys, keys, batch)
    assert_stored(given.values.cpu(), before.values, values, batch)


@pytest.mark.parametrize("values_in_keys", [False, True], ids=["own values", "values in keys"])
def test_store_writes_where_it_is_told_and_nowhere_else(
    values_in_keys: bool, ops: Ops, device: torch.device, dtype: torch.dtype
) -> None:
    heads = Heads(4, 2, 40, 24, values_in_keys=values_in_keys)
    batch = make_batch(PARTS, heads.block_tokens, num_blocks=16, num_padding=3)
    kv = random_kv(heads, 16, dtype=dtype)
    before = LayerKV(kv.keys.clone(), kv.values.clone())
    state = draw(batch.num_rows, heads.num_kv_heads, 64, dtype=dtype).to(device)
    keys, values = state[..., :40], None if values_in_keys else state[..., 40:]
    width = kv.keys.shape[3] if values_in_keys else 0
    whole = kv.keys.to(device)
    given = LayerKV(whole, whole[..., :24] if width else kv.values.to(device))
    ops.store(keys, values, moved(batch, device), given)
    assert_stored(given.keys.cpu(), before.keys, keys.cpu().double(), batch)
    expected = keys[..., :24] if values is None else values
    assert_stored(given.values.cpu(), before.values, expected.cpu().double(), batch)


def assert_stored(
    state: torch.Tensor, before: torch.Tensor, rows: torch.Tensor, batch: StepBatch
) -> None:
    """Check that `rows` lie where `kv_rows` says and that every other slot is as before."""
    touched = torch.zeros(state.shape[0], state.shape[2], dtype=torch.bool)
    for row, place in enumerate(batch.kv_rows.tolist()):
        if place < 0:
            continue
        block, offset = divmod(place, state.shape[2])
        touched[block, offset] = True
        assert_close(state[block, :, offset], rows[row], state.dtype)
    assert torch.equal(state.transpose(1, 2)[~touched], before.transpose(1, 2)[~touched])
