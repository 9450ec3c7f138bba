"""Activation functions by the names that config files give them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional

from deepseek.core.errors import UnsupportedModel

Activation = Callable[[torch.Tensor], torch.Tensor]


def activation(name: str, *, path: Path) -> Activation:
    """Return the function; `UnsupportedModel`, which names `path`, for an unknown one."""
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UnsupportedModel(f"{path}: activation {name!r} is not known; known: {known}")
    return ACTIVATIONS[name]


def _clipped_gelu(states: torch.Tensor) -> torch.Tensor:
    return functional.gelu(states).clip(-10, 10)


def _quick_gelu(states: torch.Tensor) -> torch.Tensor:
    return states * torch.sigmoid(1.702 * states)


def _squared_relu(states: torch.Tensor) -> torch.Tensor:
    return functional.relu(states).square()


def _unchanged(states: torch.Tensor) -> torch.Tensor:
    return states


_gelu_tanh: Activation = partial(functional.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Activation] = {
    "gelu": functional.gelu,
    "gelu_10": _clipped_gelu,
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_python": functional.gelu,
    "gelu_python_tanh": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "hardswish": functional.hardswish,
    "leaky_relu": functional.leaky_relu,
    "linear": _unchanged,
    "mish": functional.mish,
    "quick_gelu": _quick_gelu,
    "relu": functional.relu,
    "relu2": _squared_relu,
    "relu6": functional.relu6,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "swish": functional.silu,
    "tanh": torch.tanh,
}
