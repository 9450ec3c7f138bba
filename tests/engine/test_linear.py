"""Layers in the weights' own number format: the native bfloat16 kernel beside oneDNN and torch."""

from collections.abc import Callable

import pytest
import torch

from deepseek.engine.linear import Bf16Linear, PackedLinear, PlainLinear, make_linear
from deepseek.native.library import load_kernels

pytestmark = pytest.mark.timeout(180)  # the first may build the kernels

Layer = Callable[[torch.Tensor, torch.Tensor | None], torch.nn.Module]


def _native(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Module:
    kernels = load_kernels()
    if kernels is None or not kernels.has_bf16_linear:
        pytest.skip("needs AVX512-BF16 and a compiler")
    return Bf16Linear(weight, bias, kernels=kernels)


def draw(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize("layer", [_native, PackedLinear, PlainLinear])
@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("size", [(576, 576), (37, 51), (16, 2), (1, 3), (200, 1537)], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 16, 65, 130])
def test_layer_is_the_exact_one_rounded(
    rows: int, size: tuple[int, int], has_bias: bool, layer: Layer
) -> None:
    weight, bias = draw(*size), draw(size[0], seed=1) if has_bias else None
    inputs = draw(rows, size[1], seed=2)
    out = layer(weight, bias)(inputs)
    expected = inputs.double() @ weight.double().T
    expected = expected if bias is None else expected + bias.double()
    assert out.dtype is torch.bfloat16
    # Half a unit in the last place of 8 bits, and what float32 sums lose where terms cancel.
    cancelled = inputs.double().abs() @ weight.double().abs().T
    assert ((out.double() - expected).abs() <= expected.abs() / 256 + cancelled * 1e-6).all()


def test_a_row_does_not_depend_on_its_batch() -> None:
    layer, inputs = _native(draw(100, 300), None), draw(53, 300, seed=1)
    whole = layer(inputs)
    for size in (1, 2, 5, 16, 32):
        assert torch.equal(torch.cat([layer(part) for part in inputs.split(size)]), whole)


def test_rows_may_be_strided_and_have_more_dimensions() -> None:
    layer, inputs = _native(draw(40, 64), draw(40, seed=1)), draw(6, 200, seed=2)
    rows = inputs[:, 100:164]
    assert torch.equal(layer(rows), layer(rows.contiguous()))
    assert torch.equal(layer(rows.contiguous().view(2, 3, 64)).flatten(0, 1), layer(rows))


def test_no_rows_give_no_rows() -> None:
    assert _native(draw(400, 64), None)(draw(0, 64)).shape == (0, 400)


def test_what_is_not_finite_stays_so() -> None:
    weight = torch.ones(20, 8).bfloat16()
    inputs = torch.ones(3, 8).bfloat16()
    inputs[0, 2], inputs[1, 3] = float("inf"), float("nan")
    out = _native(weight, None)(inputs)
    assert out[0].isposinf().all()
    assert out[1].isnan().all()
    assert torch.equal(out[2], torch.full((20,), 8.0).bfloat16())


@pytest.mark.parametrize(
    "inputs", [draw(2, 63), draw(64, 2).T, draw(2, 64).float()], ids=["width", "columns", "type"]
)
def test_other_inputs_are_refused(inputs: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="rows of 64 in torch"):
        _native(draw(16, 64), None)(inputs)


def test_the_fastest_is_chosen() -> None:
    kernels = load_kernels()
    has_own = kernels is not None and kernels.has_bf16_linear
    has_amx = torch.cpu._is_amx_tile_supported()
    chosen = type(make_linear(draw(16, 16)))
    assert chosen is (Bf16Linear if has_own and not has_amx else PackedLinear)
    assert type(make_linear(draw(16, 16).float())) is PackedLinear
    assert type(make_linear(draw(16, 16).double())) is PlainLinear
