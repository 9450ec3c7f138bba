import pytest
import torch

from deepseek.engine.ops.reference import ReferenceOps
from deepseek.engine.ops.triton.ops import TritonOps
from tests.engine.ops_triton.conftest import INTERPRETED
from tests.engine.ops_triton.steps import Shape, random_step, relative_error

DTYPES = {torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 2e-3}
if INTERPRETED:
    del DTYPES[torch.bfloat16]  # the interpreter multiplies their bits, as integers

GROUPED = Shape(num_heads=8, num_kv_heads=2, key_dim=32, value_dim=32, block_tokens=16)
UNEVEN = Shape(num_heads=9, num_kv_heads=3, key_dim=64, value_dim=64, block_tokens=32)
WIDE_BLOCKS = Shape(num_heads=4, num_kv_heads=4, key_dim=128, value_dim=128, block_tokens=64)
ODD_WIDTH = Shape(num_heads=2, num_kv_heads=1, key_dim=24, value_dim=12, block_tokens=8)
LATENT = Shape(
    num_heads=16, num_kv_heads=1, key_dim=80, value_dim=64, block_tokens=16, values_in_keys=True
)
SHAPES = {
    "grouped": GROUPED,
    "uneven": UNEVEN,
    "wide": WIDE_BLOCKS,
    "odd": ODD_WIDTH,
    "latent": LATENT,
}
STEPS = {
    "one decode": [(1, 1)],
    "a long decode": [(1, 300)],
    "decodes": [(1, 5), (1, 130), (1, 64), (1, 65)],
    "decodes and padding": [(1, 70), (1, 0), (1, 3), (1, 0)],
    "a prompt": [(90, 90)],
    "prompts": [(33, 33), (80, 80), (2, 2)],
    "a later chunk": [(70, 150)],
    "drafts to check": [(3, 100), (4, 7)],
    "mixed": [(1, 40), (1, 129), (50, 50), (2, 200), (75, 140)],
}


@pytest.mark.parametrize("step_name", STEPS)
@pytest.mark.parametrize("shape_name", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_equals_the_reference(
    step_name: str, shape_name: str, dtype: torch.dtype, ops: TritonOps, device: torch.device
) -> None:
    step = random_step(
        STEPS[step_name], SHAPES[shape_name], dtype=dtype, device=device, num_padding_rows=3
    )
    scale = SHAPES[shape_name].key_dim ** -0.5
    expected = ReferenceOps().attend(*_inputs(step.widened()), scale=scale)
    actual = ops.attend(*_inputs(step), scale=scale)
    rows = sum(rows for rows, _ in STEPS[step_name])
    assert actual.shape == expected.shape
    assert actual.dtype == dtype
    assert relative_error(actual[:rows], expected[:rows]) < DTYPES[dtype]


def test_counters_are_left_at_zero_for_the_next_step(ops: TritonOps, device: torch.device) -> None:
    step = random_step(STEPS["a long decode"], GROUPED, dtype=torch.float32, device=device)
    first, second = (ops.attend(*_inputs(step), scale=0.2) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [32, 64, 24])
def test_packed_attention_equals_the_reference(
    dtype: torch.dtype, dim: int, ops: TritonOps, device: torch.device
) -> None:
    starts = torch.tensor([0, 1, 40, 170], dtype=torch.int32, device=device)
    qkv = torch.randn(170, 3 * 2 * dim, generator=torch.Generator().manual_seed(1))
    qkv = qkv.to(device, dtype)
    expected = ReferenceOps().attend_packed(qkv.float(), starts, 130, num_heads=2)
    actual = ops.attend_packed(qkv, starts, 130, num_heads=2)
    assert actual.dtype == dtype
    assert relative_error(actual, expected) < DTYPES[dtype]


def _inputs(step):
    return step.queries, step.batch, step.kv
