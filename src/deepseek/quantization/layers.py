"""Finds the layers of a transformers model that precision is chosen for, and tells their class.

The class follows from a layer's place, not from lists of architectures: a module whose path speaks
of attention is attention, what else lies in a repeated block is feed-forward, what lies outside the
blocks is a head. Routers of expert layers decide which weights are used at all and are left alone.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from deepseek.core.errors import InvalidQuantization

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_ROUTER = re.compile(r"(^|\.)(gate|router)$")
_BLOCK = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


class LayerClass(StrEnum):
    """What a layer does in its model."""

    ATTENTION = "attention"
    FFN = "ffn"
    HEAD = "head"
    ROUTER = "router"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One module with a weight matrix."""

    name: str
    module: nn.Module
    layer_class: LayerClass
    obstacle: str | None = None
    """Why it cannot be quantized, if so; it computes in 16 bits then."""

    @property
    def unit(self) -> str:
        """The group that is promoted together: a class within its block, or a head alone."""
        block = _BLOCK.search(self.name)
        if block is None:
            return self.name
        return f"{self.name[: block.end()]}:{self.layer_class}"

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        rows, columns = self.module.weight.shape
        return (columns, rows) if isinstance(self.module, Conv1D) else (rows, columns)


def find_layers(model: PreTrainedModel) -> list[Layer]:
    """Return every module that multiplies by a weight matrix, in the model's own order.

    Embeddings are tables and no layers. Raises `InvalidQuantization` where there is no layer, or
    where a layer has been quantized before.
    """
    if getattr(model, "is_quantized", False):
        raise InvalidQuantization(
            f"{type(model).__name__} is quantized already; load the float model again and apply "
            "the new config to that one",
            param="model",
        )
    tied = _tied_weights(model)
    layers = list(_layers(model, tied))
    if not layers:
        raise InvalidQuantization(
            f"{type(model).__name__} has no linear layer; nothing can be quantized", param="model"
        )
    return layers


def _layers(model: PreTrainedModel, tied: dict[int, str]) -> Iterator[Layer]:
    for name, module in model.named_modules():
        matrices = [
            own for own, value in module.named_parameters(recurse=False) if value.dim() >= 2
        ]
        if not matrices or isinstance(module, nn.Embedding):
            continue
        yield Layer(
            name=name,
            module=module,
            layer_class=_class_of(name),
            obstacle=_obstacle(module, matrices, tied),
        )


def _tied_weights(model: PreTrainedModel) -> dict[int, str]:
    """Return the name of the embedding that holds a tensor, by the tensor's identity."""
    return {
        id(module.weight): name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }


def _class_of(name: str) -> LayerClass:
    block = _BLOCK.search(name)
    if block is None:
        return LayerClass.HEAD
    within = name[block.end() :]
    if _ROUTER.search(within):
        return LayerClass.ROUTER
    return LayerClass.ATTENTION if _ATTENTION.search(within) else LayerClass.FFN


def _obstacle(module: nn.Module, matrices: list[str], tied: dict[int, str]) -> str | None:
    # Exactly these: a subclass may read its weight in a way of its own.
    if type(module) not in (nn.Linear, Conv1D):
        return f"it is a {type(module).__name__} with {', '.join(matrices)}, not a linear layer"
    owner = tied.get(id(module.weight))
    if owner is not None:
        return f"it shares its weight with the embedding {owner}"
    if module.weight.is_meta:
        return "its weight is not in memory"
    return None


def linear_names(model: nn.Module) -> list[str]:
    """Return the names of all plain linear layers, as the model is now."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
