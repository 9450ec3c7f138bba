"""INT8 layers: both implementations against the same arithmetic written out."""

from collections.abc import Callable

import pytest
import torch

from deepseek.engine.quantized_linear import (
    GROUP,
    FbgemmInt8Linear,
    Int8Linear,
    make_int8_linear,
    quantize_rows,
)
from deepseek.native.library import load_kernels

pytestmark = pytest.mark.timeout(180)  # the first may build the kernels

Layer = Callable[[torch.Tensor, torch.Tensor | None], torch.nn.Module]


def _native(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Module:
    kernels = load_kernels()
    if kernels is None or not kernels.has_int8_linear:
        pytest.skip("needs AVX512-VNNI and a compiler")
    return Int8Linear(weight, bias, kernels=kernels)


@pytest.fixture(params=[_native, FbgemmInt8Linear], ids=["native", "fbgemm"])
def layer(request: pytest.FixtureRequest) -> Layer:
    chosen: Layer = request.param
    return chosen


def draw(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def written_out(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return the layer in float64: 255 steps for 64 inputs, zero exact, whole-number products."""
    quantized, scales = quantize_rows(weight)
    out = torch.zeros(len(inputs), len(weight), dtype=torch.float64)
    for part, weights in zip(
        inputs.double().split(GROUP, 1), quantized.double().split(GROUP, 1), strict=True
    ):
        low = part.amin(1, keepdim=True).clamp(max=0)
        step = (part.amax(1, keepdim=True).clamp(min=0) - low) / 255
        step = torch.where(step > 0, step, 1.0)
        zero = torch.round(-low / step)
        rounded = (torch.round(part / step) + zero).clamp(0, 255) - zero
        out += rounded @ weights.T * step
    out *= scales.double()
    return out if bias is None else out + bias.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("size", [(576, 576), (37, 50), (16, 4), (1, 3), (200, 1537)], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 7, 64, 130])
def test_native_layer_computes_what_is_written(
    rows: int, size: tuple[int, int], has_bias: bool, dtype: torch.dtype
) -> None:
    weight, bias = draw(*size), draw(size[0], seed=1) if has_bias else None
    inputs = draw(rows, size[1], seed=2).to(dtype)
    out = _native(weight, bias)(inputs)
    expected = written_out(inputs.float(), weight, bias)
    assert out.dtype == dtype
    assert out.shape == expected.shape
    error = (out.double() - expected).norm() / expected.norm()
    # A value that lies on the edge of two steps may be rounded to either.
    assert error < (2e-3 if dtype is torch.float32 else 5e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layer_is_near_the_exact_one(layer: Layer, dtype: torch.dtype) -> None:
    weight, bias = draw(96, 576), draw(96, seed=1)
    inputs = draw(3, 5, 576, seed=2).to(dtype)
    out = layer(weight, bias)(inputs)
    expected = torch.nn.functional.linear(inputs.float(), weight, bias)
    assert out.shape == (3, 5, 96)
    assert out.dtype == dtype
    assert (out.float() - expected).norm() / expected.norm() < 0.02


def test_rows_do_not_disturb_one_another(layer: Layer) -> None:
    quantized = layer(draw(64, 128), None)
    inputs = draw(9, 128, seed=1) * torch.logspace(-4, 4, 9)[:, None]
    alone = torch.cat([quantized(row[None]) for row in inputs])
    assert torch.equal(quantized(inputs), alone)


def test_zero_rows_and_zero_weights_give_the_bias(layer: Layer) -> None:
    weight, bias = draw(20, 30), draw(20, seed=1)
    weight[3] = 0
    out = layer(weight, bias)(torch.zeros(2, 30))
    assert torch.equal(out, bias.expand(2, -1))
    out = layer(weight, bias)(draw(2, 30))
    assert torch.equal(out[:, 3], bias[3].expand(2))


def test_one_sided_rows_use_the_whole_range(layer: Layer) -> None:
    weight, inputs = draw(64, 256), draw(4, 256, seed=1).abs()
    expected = torch.nn.functional.linear(inputs, weight)
    out = layer(weight, None)(inputs)
    assert (out - expected).norm() / expected.norm() < 0.012, "half the range is lost"


def test_no_rows_give_no_rows() -> None:
    assert _native(draw(400, 64), None)(draw(0, 64)).shape == (0, 400)


def test_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match="rows of 64 wanted"):
        _native(draw(16, 64), None)(draw(2, 63))


def test_an_outlier_costs_its_own_group_only() -> None:
    weight, inputs = draw(64, 640), draw(8, 640, seed=1)
    weight[:, 5] = 0  # the outlier itself counts for nothing
    inputs[:, 5] = 3000
    expected = torch.nn.functional.linear(inputs, weight)
    error = (_native(weight, None)(inputs) - expected).norm() / expected.norm()
    assert 0.01 < error < 0.4  # one group of ten is lost


def test_the_fastest_is_chosen() -> None:
    kernels = load_kernels()
    has_own = kernels is not None and kernels.has_int8_linear
    assert type(make_int8_linear(draw(16, 16))) is (Int8Linear if has_own else FbgemmInt8Linear)


@pytest.mark.parametrize("size", [(1100, 576), (1, 3), (3, 300_000), (37, 50)], ids=str)
def test_blocks_of_rows_are_quantised_as_the_whole_would_be(size: tuple[int, int]) -> None:
    weight = draw(*size).to(torch.bfloat16)
    weight[0] = 0.0
    scales = weight.float().abs().amax(dim=1) / 127
    scales = torch.where(scales > 0, scales, 1.0)
    expected = torch.round(weight.float() / scales[:, None]).to(torch.int8)
    found, found_scales = quantize_rows(weight)
    assert torch.equal(found, expected)
    assert torch.equal(found_scales, scales)
