"""What the contract suite's small shapes do not reach: tiles by the copy engine, cuDNN, graphs."""

from dataclasses import replace

import pytest
import torch

from deepseek.engine.batch import LayerKV, StepBatch
from deepseek.engine.ops.reference import ReferenceOps
from deepseek.engine.ops.triton.ops import TritonOps
from tests.engine.ops.steps import Heads, Part, make_batch, poison_unused
from tests.engine.ops.test_rows import draw, moved
from tests.engine.ops_triton.conftest import HALF, relative_error

LLAMA = Heads(8, 2, 128, 128, block_tokens=64)
SCALE = 128**-0.5
STEPS = {
    "a prompt": [Part(90, 90)],
    "a later chunk": [Part(70, 400)],
    "mixed": [Part(1, 40), Part(1, 129), Part(50, 50), Part(75, 140)],
}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def whole_blocks(heads: Heads, num_blocks: int, *, dtype: torch.dtype) -> LayerKV:
    """Return random state as the engine lays it out: keys and values each contiguous."""
    size = (num_blocks, heads.num_kv_heads, heads.block_tokens, heads.key_dim)
    return LayerKV(draw(*size, dtype=dtype), draw(*size, dtype=dtype, seed=1))


def expected_attention(queries: torch.Tensor, batch: StepBatch, kv: LayerKV) -> torch.Tensor:
    wide = LayerKV(kv.keys.float(), kv.values.float())
    return ReferenceOps().attend(queries.float(), batch, wide, scale=SCALE)


@pytest.mark.parametrize("step_name", STEPS)
def test_tiles_that_lie_in_one_block(step_name: str, ops: TritonOps, device: torch.device) -> None:
    batch = make_batch(STEPS[step_name], 64, num_blocks=20)
    kv = whole_blocks(LLAMA, 20, dtype=HALF)
    poison_unused(kv, batch)
    queries = draw(batch.num_rows, 8, 128, dtype=HALF)
    given = LayerKV(kv.keys.to(device), kv.values.to(device))
    actual = ops.attend(queries.to(device), moved(batch, device), given, scale=SCALE)
    assert relative_error(actual, expected_attention(queries, batch, kv)) < 8e-3


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("num_rows", [4096, 4200])
def test_a_long_fresh_prompt(num_rows: int, ops: TritonOps, device: torch.device) -> None:
    heads = Heads(4, 2, 64, 64)
    batch = moved(make_batch([Part(num_rows, num_rows)], 16, num_blocks=263), device)
    kv = LayerKV(*(state.to(device) for state in _states(heads, 263)))
    queries = draw(num_rows, 4, 64, dtype=HALF).to(device)
    expected = expected_attention(queries, batch, kv)
    assert relative_error(ops.attend(queries, batch, kv, scale=SCALE), expected) < 8e-3


@pytest.mark.gpu
@needs_cuda
def test_a_captured_step_serves_other_contexts(ops: TritonOps, device: torch.device) -> None:
    contexts = ([700, 3, 0, 64], [1, 900, 333, 0])
    batches = [
        moved(make_batch([Part(1, c) for c in lens], 64, num_blocks=40), device)
        for lens in contexts
    ]
    widest = max(batch.block_tables.shape[1] for batch in batches)
    tables = [_widened(batch.block_tables, widest) for batch in batches]
    static = replace(
        batches[0],
        block_tables=tables[0].clone(),
        context_lens=batches[0].context_lens.clone(),
    )
    kv = LayerKV(*(state.to(device) for state in _states(LLAMA, 40)))
    queries = draw(4, 8, 128, dtype=HALF).to(device)
    ops.attend(queries, static, kv, scale=SCALE)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.attend(queries, static, kv, scale=SCALE)
    for batch, table in zip([*batches, *batches], [*tables, *tables], strict=True):
        static.context_lens.copy_(batch.context_lens)
        static.block_tables.copy_(table)
        graph.replay()
        assert relative_error(out, expected_attention(queries, batch, kv)) < 8e-3


def _states(heads: Heads, num_blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    kv = whole_blocks(heads, num_blocks, dtype=HALF)
    return kv.keys, kv.values


def _widened(table: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(table, (0, width - table.shape[1]))
