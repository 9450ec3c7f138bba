import pytest
import torch

from deepseek.engine.ops.triton.linear import MAX_ROWS, GpuLinear, SmallLinear
from tests.engine.ops_triton.conftest import INTERPRETED
from tests.engine.ops_triton.steps import relative_error

DTYPES = {torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
if INTERPRETED:
    del DTYPES[torch.bfloat16]  # the interpreter multiplies their bits, as integers


@pytest.fixture(scope="module")
def small(device: torch.device) -> SmallLinear:
    return SmallLinear(device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", [1, 3, MAX_ROWS, MAX_ROWS + 1])
@pytest.mark.parametrize(("width_in", "width_out"), [(64, 48), (1100, 130), (2048, 200)])
def test_linear_equals_the_product(
    dtype: torch.dtype,
    num_rows: int,
    width_in: int,
    width_out: int,
    small: SmallLinear,
    device: torch.device,
) -> None:
    random = torch.Generator().manual_seed(0)
    inputs, weight, bias = (
        torch.randn(shape, generator=random).to(device, dtype)
        for shape in ((num_rows, width_in), (width_out, width_in), (width_out,))
    )
    expected = inputs.double() @ weight.double().T + bias.double()
    for _ in range(2):  # the counters must be left as they were found
        actual = GpuLinear(weight, bias, small=small)(inputs)
        assert actual.dtype == dtype
        assert relative_error(actual, expected) < DTYPES[dtype]


def test_leading_dimensions_are_kept(small: SmallLinear, device: torch.device) -> None:
    linear = GpuLinear(torch.randn(8, 32, device=device), None, small=small)
    assert linear(torch.randn(2, 3, 32, device=device)).shape == (2, 3, 8)
