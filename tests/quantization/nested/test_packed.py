"""The kernel against the reference, and the reference against exact arithmetic."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.core.errors import ConfigurationError, CorruptWeights
from deepseek.core.precision import Precision
from deepseek.native.library import load_kernels
from deepseek.quantization.int4.rounding import round_to_nearest
from deepseek.quantization.nested import (
    NestedWeights,
    PackedNested,
    pack,
    pack_residual,
    reference,
    unpack,
)
from tests.quantization.drawing import draw

pytestmark = pytest.mark.timeout(180)  # the first may build the kernels


def packed(out: int, num_inputs: int, *, group: int = 64, residual: bool = False) -> NestedWeights:
    weight = draw(out, num_inputs, seed=out + num_inputs)
    if residual:
        return pack_residual(weight, round_to_nearest(weight, group=group))
    return pack(weight, group=group)


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    if load_kernels() is None:
        pytest.skip("needs AVX2 and a compiler")


@settings(deadline=None, max_examples=80)
@given(
    rows=st.integers(1, 70),
    out=st.integers(1, 70),
    num_groups=st.integers(1, 4),
    group=st.sampled_from([32, 64, 128]),
    residual=st.booleans(),
    in_bfloat16=st.booleans(),
    has_bias=st.booleans(),
)
def test_kernel_and_reference_agree(
    rows: int,
    out: int,
    num_groups: int,
    group: int,
    residual: bool,
    in_bfloat16: bool,
    has_bias: bool,
) -> None:
    weights = packed(out, num_groups * group, group=group, residual=residual)
    bias = draw(out, seed=1) if has_bias else None
    inputs = draw(rows, num_groups * group, seed=rows)
    inputs = inputs.bfloat16() if in_bfloat16 else inputs
    layer = PackedNested(weights, bias)
    for precision in (Precision.INT8, Precision.INT4):
        found = layer.forward(inputs, precision)
        expected = reference.multiply(inputs, weights, int8=precision is Precision.INT8)
        expected = expected if bias is None else expected + bias
        assert found.dtype is inputs.dtype
        # Whole numbers agree exactly; a compiler may fuse the few float operations otherwise.
        torch.testing.assert_close(
            found.float(), expected, rtol=5e-3 if in_bfloat16 else 1e-5, atol=1e-4
        )


@settings(deadline=None, max_examples=60)
@given(
    int8_rows=st.lists(st.booleans(), min_size=1, max_size=40),
    out=st.integers(1, 70),
    residual=st.booleans(),
)
def test_rows_get_what_they_would_get_alone(
    int8_rows: list[bool], out: int, residual: bool
) -> None:
    layer = PackedNested(packed(out, 192, residual=residual), draw(out, seed=1))
    inputs = draw(len(int8_rows), 192, seed=2) * torch.logspace(-3, 3, len(int8_rows))[:, None]
    mixed = layer.forward(inputs, torch.tensor(int8_rows))
    for row, int8 in enumerate(int8_rows):
        precision = Precision.INT8 if int8 else Precision.INT4
        assert torch.equal(mixed[row : row + 1], layer.forward(inputs[row : row + 1], precision))
    int8_out, int4_out = (layer.forward(inputs, each) for each in (Precision.INT8, Precision.INT4))
    assert torch.equal(mixed, torch.where(torch.tensor(int8_rows)[:, None], int8_out, int4_out))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("size", [(576, 576), (130, 1536)], ids=str)
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
def test_products_are_near_the_exact_ones(
    size: tuple[int, int], precision: Precision, residual: bool
) -> None:
    weights = packed(*size, residual=residual)
    inputs = draw(5, size[1], seed=3)
    expected = inputs.double() @ unpack(weights, precision).double().T
    error = (PackedNested(weights).forward(inputs, precision) - expected).norm() / expected.norm()
    assert error < 0.01


def test_threads_change_nothing() -> None:
    layer = PackedNested(packed(700, 576))
    inputs, rows = draw(40, 576), torch.arange(40) % 3 == 0
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = layer.forward(inputs, rows)
        torch.set_num_threads(2)
        assert torch.equal(layer.forward(inputs, rows), alone)
    finally:
        torch.set_num_threads(before)


def test_rows_may_lie_apart() -> None:
    layer = PackedNested(packed(50, 128))
    wide = draw(9, 300)
    for view in (wide[:, 100:228], wide[::2, :128]):
        expected = layer.forward(view.contiguous(), Precision.INT8)
        assert torch.equal(layer.forward(view, Precision.INT8), expected)


def test_int4_does_not_need_the_low_plane() -> None:
    weights = packed(50, 128)
    both, high = PackedNested(weights), PackedNested(dataclasses.replace(weights, low=None))
    inputs = draw(3, 128)
    expected = both.forward(inputs, Precision.INT4)
    assert torch.equal(high.forward(inputs, Precision.INT4), expected)
    assert high.nbytes() < 0.57 * both.nbytes()
    for precision in (Precision.INT8, torch.tensor([False, True, False])):
        with pytest.raises(ConfigurationError, match="weight_lo"):
            high.forward(inputs, precision)


def test_no_rows_give_no_rows() -> None:
    layer = PackedNested(packed(50, 128))
    assert layer.forward(draw(0, 128), Precision.INT8).shape == (0, 50)
    assert layer.forward(draw(0, 128), torch.empty(0, dtype=torch.bool)).shape == (0, 50)


def test_zero_rows_give_the_bias() -> None:
    bias = draw(50)
    layer = PackedNested(packed(50, 128), bias)
    for precision in (Precision.INT8, Precision.INT4):
        assert torch.equal(layer.forward(torch.zeros(2, 128), precision), bias.expand(2, -1))


def test_bad_inputs_are_refused() -> None:
    layer = PackedNested(packed(50, 128))
    with pytest.raises(ValueError, match="contiguous rows of 128"):
        layer.forward(draw(2, 64), Precision.INT8)
    with pytest.raises(ValueError, match="contiguous rows of 128"):
        layer.forward(draw(128, 2).T, Precision.INT8)
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        layer.forward(draw(2, 128).double(), Precision.INT8)
    with pytest.raises(ValueError, match="true where int8"):
        layer.forward(draw(2, 128), torch.tensor([True]))
    with pytest.raises(ValueError, match="true where int8"):
        layer.forward(draw(2, 128), torch.tensor([1, 0]))
    with pytest.raises(ConfigurationError, match="fp16"):
        layer.forward(draw(2, 128), Precision.FP16)
    with pytest.raises(CorruptWeights, match="bias"):
        PackedNested(packed(50, 128), draw(49))
