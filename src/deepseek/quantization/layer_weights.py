"""The nested weights of a layer, by the INT4 algorithm that the config names."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from deepseek.quantization.calibration import Part
from deepseek.quantization.config import MixedPrecisionConfig
from deepseek.quantization.int4.gptq import InputMoments, gptq
from deepseek.quantization.int4.scale_search import search_scales
from deepseek.quantization.layers import Layer
from deepseek.quantization.nested import NestedLinear, NestedWeights, pack, pack_residual

_MOMENTS_BYTES = 2 * 2**30
"""Most that second moments take at a time; a model with more is run several times."""


def nested_layers(
    model: PreTrainedModel, layers: Sequence[Layer], *, config: MixedPrecisionConfig, part: Part
) -> Iterator[tuple[str, NestedLinear]]:
    """Yield the nested form of each layer of a float model; `part` is what gptq calibrates on."""
    if config.int4_algorithm != "gptq":
        for layer in layers:
            yield layer.name, _layer(layer, _packed(matrix_of(layer.module), config))
        return
    for some in _in_budget(layers):
        moments = _gather(model, some, part)
        for layer in some:
            weights = _calibrated(matrix_of(layer.module), moments[layer.name], config)
            yield layer.name, _layer(layer, weights)


def matrix_of(module: nn.Module) -> torch.Tensor:
    """Return a layer's weight as (outputs, inputs); that of other modules as it is."""
    weight = next(iter(module.parameters(recurse=False)))
    weight = getattr(module, "weight", weight).detach()
    return weight.T.contiguous() if isinstance(module, Conv1D) else weight


def _packed(weight: torch.Tensor, config: MixedPrecisionConfig) -> NestedWeights:
    if config.int4_algorithm == "search":
        return pack_residual(weight, search_scales(weight, group=config.group_size))
    return pack(weight, group=config.group_size)


def _calibrated(
    weight: torch.Tensor, moments: InputMoments, config: MixedPrecisionConfig
) -> NestedWeights:
    """Choose both planes by GPTQ: a low plane that is rounded makes INT8 five times worse."""
    hessian = moments.hessian()
    int4 = gptq(weight, hessian, group=config.group_size)
    rest = gptq(weight - int4.dequantized(), hessian, group=config.group_size)
    return pack_residual(weight, int4, rest=rest)


def _layer(layer: Layer, weights: NestedWeights) -> NestedLinear:
    return NestedLinear.from_weights(weights, layer.module.bias)


def _in_budget(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Yield the layers, in order, as many at a time as their moments fit in memory."""
    some: list[Layer] = []
    used = 0
    for layer in layers:
        needed = 4 * layer.shape[1] ** 2
        if some and used + needed > _MOMENTS_BYTES:
            yield some
            some, used = [], 0
        some.append(layer)
        used += needed
    if some:
        yield some


@torch.inference_mode()
def _gather(model: PreTrainedModel, layers: Sequence[Layer], part: Part) -> dict[str, InputMoments]:
    """Return the second moments of what each layer reads when the model reads the part."""
    moments = {layer.name: InputMoments(layer.shape[1]) for layer in layers}
    with ExitStack() as hooks:
        for layer in layers:
            handle = layer.module.register_forward_pre_hook(_adding_to(moments[layer.name]))
            hooks.callback(handle.remove)
        for batch in part.batches:
            model(**{name: value.to(model.device) for name, value in batch.items()})
    return moments


def _adding_to(moments: InputMoments) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def add(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        moments.add(arguments[0])

    return add
