"""Activation functions against transformers' own."""

from pathlib import Path

import pytest
import torch
from transformers.activations import ACT2FN

from deepseek.core.errors import UnsupportedModel
from deepseek.engine.models.activations import ACTIVATIONS, activation

LEFT_OUT = {"laplace", "prelu", "sqrtsoftplus", "xielu"}
"""Of no family that is run; two of them have weights."""


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_name_means_what_it_means_to_transformers(name: str) -> None:
    states = torch.linspace(-12, 12, 4001)
    torch.testing.assert_close(
        activation(name, path=Path("m"))(states.clone()), ACT2FN[name](states), rtol=1e-5, atol=2e-6
    )


def test_every_name_is_known() -> None:
    assert set(ACTIVATIONS) | LEFT_OUT == set(ACT2FN)


def test_an_unknown_activation_names_the_model() -> None:
    with pytest.raises(UnsupportedModel, match=r"some-model: activation 'prelu'.*known: gelu, "):
        activation("prelu", path=Path("some-model"))
