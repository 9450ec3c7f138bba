"""INT4 algorithms: each better than the last where it says it is, and exact about bad input."""

import pytest
import torch

from deepseek.core.errors import ConfigurationError
from deepseek.quantization.int4.base import Int4Weights
from deepseek.quantization.int4.gptq import InputMoments, gptq
from deepseek.quantization.int4.rounding import round_to_nearest
from deepseek.quantization.int4.scale_search import search_scales
from tests.quantization.drawing import draw


def heavy_tailed(out: int, num_inputs: int) -> torch.Tensor:
    return draw(out, num_inputs) * (1 + draw(out, num_inputs, seed=1).pow(4) / 3) * 0.02


def correlated_inputs(rows: int, num_inputs: int, *, seed: int) -> torch.Tensor:
    few = num_inputs // 4
    common = draw(rows, few, seed=seed) @ draw(few, num_inputs, seed=9)
    return common + 0.5 * draw(rows, num_inputs, seed=seed + 100)


@pytest.mark.parametrize("group", [32, 64])
def test_rounding_is_within_half_a_step_of_all_it_can_reach(group: int) -> None:
    weight = draw(20, 192)
    int4 = round_to_nearest(weight, group=group)
    assert int4.group == group
    assert int4.values.amin() == -8
    steps = int4.scales.float().abs().repeat_interleave(group, dim=1)
    # What lies opposite an extreme of about the same size is beyond 7.
    assert ((int4.dequantized() - weight).abs() <= 1.06 * steps).all()
    inner = weight.abs() <= 7 * steps
    assert ((int4.dequantized() - weight).abs() <= 0.51 * steps)[inner].all()


@pytest.mark.parametrize("size", [1.0, 1e-12, 1e12])
def test_searched_scales_cost_less_than_those_that_reach_the_extreme(size: float) -> None:
    weight = heavy_tailed(64, 512) * size

    def cost(int4: Int4Weights) -> float:
        return ((int4.dequantized() - weight) / size).double().pow(4).sum().item()

    assert cost(search_scales(weight)) < 0.9 * cost(round_to_nearest(weight))


def test_gptq_lowers_the_error_of_outputs_on_other_inputs() -> None:
    weight = heavy_tailed(96, 256)
    moments = InputMoments(256)
    for seed in range(4):
        moments.add(correlated_inputs(500, 256, seed=seed))
    held_out = correlated_inputs(500, 256, seed=10)

    def error(int4: Int4Weights) -> float:
        return ((int4.dequantized() - weight) @ held_out.T).norm().item()

    found = gptq(weight, moments.hessian())
    assert error(found) < 0.7 * error(round_to_nearest(weight))
    assert error(found) < 0.8 * error(gptq(weight, torch.eye(256)))


def test_gptq_without_correlation_is_rounding_with_chosen_scales() -> None:
    weight = heavy_tailed(16, 128)
    found = gptq(weight, torch.eye(128), damping=0.0)
    scales = found.scales.float().repeat_interleave(64, dim=1)
    assert torch.equal(found.values.float(), (weight / scales).round().clamp(-8, 7))


def test_gptq_survives_inputs_that_are_always_zero() -> None:
    inputs = correlated_inputs(500, 128, seed=0)
    inputs[:, 5:20] = 0.0
    moments = InputMoments(128)
    moments.add(inputs)
    found = gptq(heavy_tailed(8, 128), moments.hessian())
    assert torch.isfinite(found.dequantized()).all()


def test_zeros_stay_zeros() -> None:
    weight = torch.zeros(3, 64)
    for int4 in (round_to_nearest(weight), search_scales(weight), gptq(weight, torch.eye(64))):
        assert not int4.dequantized().any()


def test_too_little_calibration_is_refused() -> None:
    moments = InputMoments(64)
    moments.add(draw(63, 64))
    with pytest.raises(ConfigurationError, match="63 rows for a layer of 64 inputs"):
        moments.hessian()


def test_a_hessian_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Hessian"):
        gptq(draw(4, 64), torch.eye(32))
    with pytest.raises(ConfigurationError, match="Hessian"):
        gptq(draw(4, 64), torch.full((64, 64), float("nan")))
    with pytest.raises(ConfigurationError, match="has no inverse"):
        gptq(draw(4, 64), -torch.eye(64))


@pytest.mark.parametrize(
    "algorithm", [round_to_nearest, search_scales], ids=["rounding", "searched"]
)
def test_bad_weights_are_named_and_refused(algorithm: type) -> None:
    with pytest.raises(ConfigurationError, match="does not divide the 100 inputs"):
        algorithm(torch.ones(2, 100))
    with pytest.raises(ConfigurationError, match="NaN"):
        algorithm(torch.full((2, 64), float("nan")))
