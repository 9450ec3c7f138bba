"""A projection over a layer that can do what follows the product in the product itself."""

import pytest
import torch

from deepseek.engine.batch import NO_CHOICES, RowChoices
from deepseek.engine.linear import FusingLinear, PlainLinear
from deepseek.engine.models.projection import AdapterWeights, Projection, stack_adapters
from deepseek.engine.ops.reference import ReferenceOps

WEIGHT = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
INPUTS = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
OPS = ReferenceOps()


class FromRows(PlainLinear):
    """Fuses what has `min_rows` rows or more, and counts how often it did."""

    def __init__(self, min_rows: int) -> None:
        super().__init__(WEIGHT, None)
        self.min_rows = min_rows
        self.num_fused = 0

    def add_to(self, residual: torch.Tensor, inputs: torch.Tensor) -> bool:
        if len(inputs) < self.min_rows:
            return False
        residual += self(inputs)
        self.num_fused += 1
        return True

    def gated_silu(self, inputs: torch.Tensor) -> torch.Tensor | None:
        if len(inputs) < self.min_rows:
            return None
        self.num_fused += 1
        return OPS.gated_silu(self(inputs))


def projection(linear: torch.nn.Module) -> Projection:
    made = Projection(linear, names=("up",), in_features=8, out_features=(24,))
    random = torch.Generator().manual_seed(2)
    down, up = torch.randn(2, 8, generator=random), torch.randn(24, 2, generator=random)
    made.adapters = stack_adapters({1: AdapterWeights(down=down, up=up)})
    return made


def added(made: Projection, choices: RowChoices) -> torch.Tensor:
    residual = torch.ones(5, 24)
    left = made.add_to(residual, INPUTS, choices)
    return residual if left is None else residual + left


@pytest.mark.parametrize(("min_rows", "num_fused"), [(5, 2), (6, 0)])
def test_a_layer_fuses_where_it_says_so(min_rows: int, num_fused: int) -> None:
    linear = FromRows(min_rows)
    assert isinstance(linear, FusingLinear)
    made, plain = projection(linear), projection(PlainLinear(WEIGHT, None))
    assert torch.equal(added(made, NO_CHOICES), added(plain, NO_CHOICES))
    gated = made.gated_silu(INPUTS, NO_CHOICES, OPS)
    assert torch.equal(gated, OPS.gated_silu(INPUTS @ WEIGHT.T))
    assert linear.num_fused == num_fused


def test_rows_with_adapters_are_not_fused() -> None:
    linear = FromRows(1)
    made, plain = projection(linear), projection(PlainLinear(WEIGHT, None))
    choices = RowChoices(adapters=torch.tensor([0, 1, 1, 0, 1]))
    assert torch.equal(added(made, choices), added(plain, choices))
    assert not torch.equal(added(plain, choices), added(plain, NO_CHOICES))
    gated = made.gated_silu(INPUTS, choices, OPS)
    assert torch.equal(gated, OPS.gated_silu(plain(INPUTS, choices)))
    assert linear.num_fused == 0
