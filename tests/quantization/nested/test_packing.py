"""The nested format: what survives packing, to within half a step of each grid."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.core.errors import ConfigurationError, CorruptWeights
from deepseek.core.precision import Precision
from deepseek.quantization.int4.base import Int4Weights
from deepseek.quantization.int4.rounding import round_to_nearest
from deepseek.quantization.int4.scale_search import search_scales
from deepseek.quantization.nested import NestedWeights, pack, pack_residual, unpack
from deepseek.quantization.nested.planes import high_nibbles, matrix
from tests.quantization.drawing import draw

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 4), st.sampled_from([32, 64, 128]))


def scales_by_weight(weights: NestedWeights) -> torch.Tensor:
    """Return the size of the INT4 step under each weight."""
    scales = weights.scale.float().abs().transpose(1, 2).flatten(0, 1)[: weights.out_features]
    return scales.repeat_interleave(weights.group, dim=1)


@settings(deadline=None, max_examples=60)
@given(size=SIZES, seed=st.integers(0, 2**31), exponent=st.integers(-20, 20))
def test_errors_stay_within_half_a_step_of_either_grid(
    size: tuple[int, int, int], seed: int, exponent: int
) -> None:
    out, num_groups, group = size
    weight = draw(out, num_groups * group, seed=seed) * 2.0**exponent
    weights = pack(weight, group=group)
    steps = scales_by_weight(weights)
    # Scales are rounded to bfloat16, by which an extreme may miss the end of the grid.
    assert ((unpack(weights, Precision.INT8) - weight).abs() <= steps * (0.5 / 16 + 0.035)).all()
    assert ((unpack(weights, Precision.INT4) - weight).abs() <= steps * (0.5 + 0.07)).all()


@settings(deadline=None, max_examples=60)
@given(size=SIZES, seed=st.integers(0, 2**31))
def test_a_residual_leaves_int4_as_it_was_and_a_sixteenth_of_its_error(
    size: tuple[int, int, int], seed: int
) -> None:
    out, num_groups, group = size
    weight = draw(out, num_groups * group, seed=seed)
    int4 = round_to_nearest(weight, group=group)
    weights = pack_residual(weight, int4)
    assert torch.equal(unpack(weights, Precision.INT4), int4.dequantized())
    rest = (int4.dequantized() - weight).unflatten(1, (-1, group)).abs().amax(dim=2)
    error = (unpack(weights, Precision.INT8) - weight).unflatten(1, (-1, group)).abs().amax(dim=2)
    assert (error <= rest / 14).all()


def test_the_rest_may_be_quantised_by_an_algorithm_too() -> None:
    weight = draw(20, 128)
    int4 = round_to_nearest(weight)
    rest = search_scales(weight - int4.dequantized())
    found = unpack(pack_residual(weight, int4, rest), Precision.INT8)
    torch.testing.assert_close(found, int4.dequantized() + rest.dequantized())
    with pytest.raises(ConfigurationError, match="the weight is"):
        pack_residual(weight, int4, round_to_nearest(weight, group=32))


def test_int4_is_the_high_plane_alone() -> None:
    weights = pack(draw(50, 192))
    assert weights.low is not None
    damaged = dataclasses.replace(weights, low=torch.zeros_like(weights.low))
    expected = matrix(high_nibbles(weights.high), out_features=50) * scales_by_weight(weights)
    signs = weights.scale.float().sign().transpose(1, 2).flatten(0, 1)[:50]
    expected = expected * signs.repeat_interleave(64, dim=1)
    assert torch.equal(unpack(damaged, Precision.INT4), expected)
    assert torch.equal(unpack(dataclasses.replace(weights, low=None), Precision.INT4), expected)


def test_zero_stays_exact_and_a_group_of_zeros_needs_no_scale() -> None:
    weight = draw(3, 128)
    weight[1] = 0.0
    weight[:, 7] = 0.0
    for precision in (Precision.INT4, Precision.INT8):
        found = unpack(pack(weight), precision)
        assert not found[1].any()
        assert not found[:, 7].any()


def test_one_sided_groups_use_the_whole_grid() -> None:
    weight = torch.linspace(0, 1, 64)[None].repeat(2, 1)
    weight[1] = -weight[1]
    error = (unpack(pack(weight), Precision.INT8) - weight).abs().max()
    assert error <= 0.51 / 136


def test_int8_is_all_but_as_near_as_plain_int8_by_group() -> None:
    weight = draw(256, 512)
    grouped = weight.unflatten(1, (-1, 64))
    scales = grouped.abs().amax(dim=2, keepdim=True) / 127
    plain = ((grouped / scales).round() * scales).flatten(1)
    error = (unpack(pack(weight), Precision.INT8) - weight).norm()
    assert error < 1.05 * (plain - weight).norm()


def test_planes_take_little_more_than_a_byte_a_weight() -> None:
    weights = pack(draw(64, 1024))
    assert weights.plane_bytes() == {
        "weight_hi": 64 * 1024 // 2,
        "weight_lo": 64 * 1024 // 2,
        "weight_scale": 64 * 1024 // 64 * 2,
    }


@pytest.mark.parametrize(
    ("weight", "group", "words"),
    [
        (torch.ones(2, 100), 64, "group size 64 does not divide the 100 inputs"),
        (torch.ones(2, 96), 48, "group size 48 is not one of the nested format's: 32, 64, 128"),
        (torch.ones(2, 64), 0, "group size 0 does not divide"),
        (torch.tensor([[float("nan")] * 64]), 64, "64 numbers that are NaN or infinite"),
        (torch.full((1, 64), float("inf")), 64, "64 numbers that are NaN or infinite"),
        (torch.ones(0, 64), 64, r"shape \(0, 64\)"),
        (torch.ones(64), 64, r"shape \(64,\)"),
        (torch.ones(2, 64, dtype=torch.int8), 64, "floating-point"),
    ],
    ids=["undivided", "unknown group", "no group", "nan", "infinite", "empty", "vector", "whole"],
)
def test_bad_weights_are_named_and_refused(weight: torch.Tensor, group: int, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        pack(weight, group=group)


def test_int4_weights_that_do_not_belong_are_refused() -> None:
    weight = draw(4, 64)
    int4 = round_to_nearest(draw(5, 64))
    with pytest.raises(ConfigurationError, match="the weight is"):
        pack_residual(weight, int4)
    too_large = Int4Weights(values=torch.full((4, 64), 9, dtype=torch.int8), scales=int4.scales[:4])
    with pytest.raises(ConfigurationError, match="outside -8 to 7"):
        pack_residual(weight, too_large)


@pytest.mark.parametrize(
    ("plane", "value", "words"),
    [
        ("high", torch.zeros(4, 8, 16, 4), "weight_hi is .* in torch.float32"),
        ("high", torch.zeros(4, 8, 64, dtype=torch.uint8), "weight_hi"),
        ("high", torch.zeros(3, 8, 16, 4, dtype=torch.uint8), "3 tiles of 16 outputs"),
        ("low", torch.zeros(4, 8, 16, 4, dtype=torch.int8), "weight_lo is .* in torch.int8"),
        ("low", torch.zeros(3, 8, 16, 4, dtype=torch.uint8), "weight_lo"),
        ("low", torch.zeros(4, 8, 4, 16, dtype=torch.uint8).transpose(2, 3), "contiguous"),
        ("scale", torch.ones(4, 1, 16), "weight_scale is .* in torch.float32"),
        ("scale", torch.ones(4, 3, 16).bfloat16(), r"weight_scale .* \(4, groups, 16\)"),
        ("low_scale", torch.ones(4, 2, 16).bfloat16(), "weight_lo_scale"),
    ],
)
def test_damaged_planes_are_named_and_refused(plane: str, value: torch.Tensor, words: str) -> None:
    weights = pack(draw(50, 64))
    with pytest.raises(CorruptWeights, match=words):
        dataclasses.replace(weights, **{plane: value})


def test_precisions_that_are_not_there_are_refused() -> None:
    weights = pack(draw(5, 64))
    with pytest.raises(ConfigurationError, match="fp16 weights are a layer of their own"):
        unpack(weights, Precision.FP16)
    with pytest.raises(ConfigurationError, match="weight_lo"):
        unpack(dataclasses.replace(weights, low=None), Precision.INT8)
