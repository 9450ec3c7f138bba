import pytest
import torch

from deepseek.engine.linear import FusingLinear
from deepseek.engine.ops.triton.gated_linear import MIN_ROWS, gated_linear
from deepseek.engine.ops.triton.launching import Launch
from deepseek.engine.ops.triton.linear import MAX_ROWS, GpuLinear
from tests.engine.ops_triton.conftest import HALF, relative_error

DTYPES = {torch.float32: 1e-6, HALF: 6e-3}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", [1, 3, MAX_ROWS, MAX_ROWS + 1])
@pytest.mark.parametrize(("width_in", "width_out"), [(64, 48), (1100, 130), (2048, 200)])
def test_linear_equals_the_product(
    dtype: torch.dtype,
    num_rows: int,
    width_in: int,
    width_out: int,
    device: torch.device,
) -> None:
    random = torch.Generator().manual_seed(0)
    inputs, weight, bias = (
        torch.randn(shape, generator=random).to(device, dtype)
        for shape in ((num_rows, width_in), (width_out, width_in), (width_out,))
    )
    expected = inputs.double() @ weight.double().T + bias.double()
    for _ in range(2):  # the counters must be left as they were found
        actual = GpuLinear(weight, bias)(inputs)
        assert actual.dtype == dtype
        assert relative_error(actual, expected) < DTYPES[dtype]


def test_leading_dimensions_are_kept(device: torch.device) -> None:
    linear = GpuLinear(torch.randn(8, 32, device=device).to(HALF), None)
    assert linear(torch.randn(2, 3, 32, device=device).to(HALF)).shape == (2, 3, 8)


def test_transposed_weights_give_the_same(device: torch.device) -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(256, 96, generator=random).to(device, HALF)
    inputs = torch.randn(3, 256, generator=random).to(device, HALF)
    actual = GpuLinear(weight.T, None)(inputs)
    assert relative_error(actual, inputs.double() @ weight.double()) < 6e-3


@pytest.mark.parametrize("num_rows", [17, 2048])
def test_adding_to_a_residual_is_all_or_nothing(num_rows: int, device: torch.device) -> None:
    random = torch.Generator().manual_seed(0)
    weight, inputs, residual = (
        torch.randn(shape, generator=random).to(device, HALF)
        for shape in ((72, 40), (num_rows, 40), (num_rows, 72))
    )
    linear = GpuLinear(weight, None)
    assert isinstance(linear, FusingLinear)
    before = residual.clone()
    if linear.add_to(residual, inputs):
        before = before.double() + inputs.double() @ weight.double().T
    assert relative_error(residual, before) < 6e-3
    assert linear.add_to(residual, inputs) == (num_rows == 2048)


@pytest.mark.parametrize("num_rows", [5, 300])
@pytest.mark.parametrize(("width_in", "width_out"), [(64, 48), (200, 264), (1024, 128)])
def test_gated_linear_equals_the_product(
    num_rows: int, width_in: int, width_out: int, device: torch.device
) -> None:
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(num_rows, width_in, generator=random).to(device, HALF)
    weight = torch.randn(2 * width_out, width_in, generator=random).to(device, HALF)
    weight *= width_in**-0.5
    gate, up = (inputs.double() @ weight.double().T).chunk(2, dim=-1)
    expected = gate / (1 + (-gate).exp()) * up
    actual = gated_linear(Launch(device), inputs, weight)
    assert actual.shape == (num_rows, width_out)
    assert relative_error(actual, expected) < 6e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_prompts_of_many_rows_are_gated_in_the_product(device: torch.device) -> None:
    weight, inputs = (torch.randn(n, 64, device=device).to(HALF) for n in (512, MIN_ROWS))
    linear = GpuLinear(weight, None)
    gate, up = (inputs.double() @ weight.double().T).chunk(2, dim=-1)
    gated = linear.gated_silu(inputs)
    assert gated is not None
    assert relative_error(gated, gate / (1 + (-gate).exp()) * up) < 6e-3
    assert linear.gated_silu(inputs[:-1]) is None
    assert GpuLinear(weight, weight[:, 0]).gated_silu(inputs) is None
