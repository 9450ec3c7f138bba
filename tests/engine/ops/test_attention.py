"""Attention over paged state and over packed sequences."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek.engine.batch import LayerKV
from deepseek.engine.ops.base import Ops
from tests.engine.ops import definitions
from tests.engine.ops.steps import Heads, Part, make_batch, poison_unused, random_kv
from tests.engine.ops.test_rows import assert_close, draw, moved

HEADS = {
    "grouped": Heads(9, 3, 64, 64),
    "one for each": Heads(4, 4, 32, 32, block_tokens=32),
    "one for all": Heads(7, 1, 48, 48),
    "odd widths": Heads(6, 2, 36, 20),
    "latent": Heads(16, 1, 96, 80, values_in_keys=True),
    "deepseek": Heads(16, 1, 576, 512, block_tokens=32, values_in_keys=True),
}
STEPS = {
    "one token": [Part(1, 1)],
    "a decode": [Part(1, 77)],
    "a long decode": [Part(1, 3001)],
    "decodes": [Part(1, 1), Part(1, 64), Part(1, 65), Part(1, 500)],
    "decodes and padding": [Part(1, 9), Part(1, 0), Part(1, 130), Part(1, 0)],
    "a prompt": [Part(150, 150)],
    "a later chunk": [Part(70, 700)],
    "drafts to check": [Part(3, 1200), Part(2, 40)],
    "mixed": [Part(1, 30), Part(1, 300), Part(64, 64), Part(33, 260), Part(2, 2)],
}


@pytest.mark.parametrize("step_name", STEPS)
@pytest.mark.parametrize("heads_name", HEADS)
def test_attend(
    heads_name: str, step_name: str, ops: Ops, device: torch.device, dtype: torch.dtype
) -> None:
    heads, parts = HEADS[heads_name], STEPS[step_name]
    kv = random_kv(heads, 260, dtype=dtype)
    batch = make_batch(parts, heads.block_tokens, num_blocks=260, num_padding=2)
    poison_unused(kv, batch)
    queries = draw(batch.num_rows, heads.num_heads, heads.key_dim, dtype=dtype)
    scale = heads.key_dim**-0.5
    expected = definitions.attend(queries, batch, kv, scale).flatten(1)
    out = ops.attend(queries.to(device), moved(batch, device), on_device(kv, device), scale=scale)
    assert out.shape == (batch.num_rows, heads.num_heads * heads.value_dim)
    assert not out.isnan().any()
    assert_close(out[: expected.shape[0]], expected, dtype)


def test_attend_takes_strided_queries(ops: Ops, device: torch.device, dtype: torch.dtype) -> None:
    heads = HEADS["grouped"]
    kv = random_kv(heads, 40, dtype=dtype)
    batch = make_batch([Part(1, 50), Part(20, 90)], 16, num_blocks=40)
    wide = draw(batch.num_rows, heads.num_heads, heads.key_dim + 16, dtype=dtype)
    expected = definitions.attend(wide[..., :64], batch, kv, 0.125).flatten(1)
    given = wide.to(device)[..., :64], moved(batch, device), on_device(kv, device)
    assert_close(ops.attend(*given, scale=0.125), expected, dtype)


def test_large_scores_do_not_overflow(ops: Ops, device: torch.device) -> None:
    heads = HEADS["grouped"]
    kv = random_kv(heads, 40, dtype=torch.float32)
    batch = make_batch([Part(1, 300), Part(40, 90)], 16, num_blocks=40)
    queries = draw(batch.num_rows, 9, 64) * 1000
    expected = definitions.attend(queries, batch, kv, 1.0).flatten(1)
    given = queries.to(device), moved(batch, device), on_device(kv, device)
    assert_close(ops.attend(*given, scale=1.0), expected, torch.float32)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    decodes=st.lists(st.integers(0, 90), min_size=1, max_size=5),
    chunks=st.lists(st.tuples(st.integers(2, 40), st.integers(0, 90)), max_size=3),
    num_padding=st.integers(0, 5),
)
def test_what_a_row_gets_depends_on_its_own_sequence_only(
    decodes: list[int],
    chunks: list[tuple[int, int]],
    num_padding: int,
    ops: Ops,
    device: torch.device,
) -> None:
    heads = Heads(6, 2, 32, 32)
    parts = [Part(1, context) for context in decodes]
    parts += [Part(rows, rows + before) for rows, before in chunks]
    kv = random_kv(heads, 80, dtype=torch.float32)
    batch = make_batch(parts, 16, num_blocks=80, num_padding=num_padding)
    poison_unused(kv, batch)
    queries = draw(batch.num_rows, 6, 32)
    num_real = int(batch.query_starts[-1])
    queries[num_real:] = float("nan")
    for index, part in enumerate(parts):
        if part.context == 0:
            queries[batch.query_starts[index]] = float("nan")
    expected = definitions.attend(queries, batch, kv, 0.2).flatten(1)
    given_ = queries.to(device), moved(batch, device), on_device(kv, device)
    out = ops.attend(*given_, scale=0.2).cpu().double()[:num_real]
    real = torch.cat([torch.full((part.rows,), part.context > 0) for part in parts])
    assert torch.allclose(out[real], expected[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", [32, 64, 24])
@pytest.mark.parametrize(
    "lengths", [[1], [5, 512, 70, 128], [16] * 20, [0, 3, 0, 97]], ids=["one", "mixed", "equal", "empty"]
)
def test_attend_packed(
    lengths: list[int], dim: int, ops: Ops, device: torch.device, dtype: torch.dtype
) -> None:
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    qkv = draw(int(starts[-1]), 3 * 12 * dim, dtype=dtype)
    out = ops.attend_packed(qkv.to(device), starts.to(device), max(lengths), num_heads=12)
    assert_close(out, definitions.attend_packed(qkv, starts, 12), dtype)


def on_device(kv: LayerKV, device: torch.device) -> LayerKV:
    keys = kv.keys.to(device)
    if kv.values.data_ptr() == kv.keys.data_ptr():
        return LayerKV(keys, keys[..., : kv.values.shape[3]])
    return LayerKV(keys, kv.values.to(device))
