"""From a config to the precision of every layer of a model; refuses what does not fit."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import get_args

import torch

from deepseek.core.errors import InvalidQuantization
from deepseek.core.precision import Precision
from deepseek.quantization.config import MixedPrecisionConfig
from deepseek.quantization.layers import Layer, LayerClass

GROUP_SIZES: tuple[int, ...] = get_args(MixedPrecisionConfig.model_fields["group_size"].annotation)
Assignment = Mapping[str, Precision]
"""Precision by layer name."""


def assign(layers: Sequence[Layer], config: MixedPrecisionConfig) -> dict[str, Precision]:
    """Return what each layer shall compute in.

    Raises `InvalidQuantization` for a rule that matches nothing, a layer that cannot be quantized
    though the config says so, a group size that does not divide, weights that are no numbers.
    """
    _require_matches(layers, config)
    assignment = {layer.name: _precision(layer, config) for layer in layers}
    for layer in layers:
        if assignment[layer.name] is not Precision.FP16:
            _require_quantizable(layer, assignment[layer.name], config)
    return assignment


def _precision(layer: Layer, config: MixedPrecisionConfig) -> Precision:
    for rule in config.rules:
        if fnmatch.fnmatchcase(layer.name, rule.layers):
            return rule.precision
    return {
        LayerClass.ATTENTION: config.attention_layers,
        LayerClass.FFN: config.ffn_layers,
        LayerClass.HEAD: config.head_layers,
        LayerClass.ROUTER: Precision.FP16,
    }[layer.layer_class]


def _require_matches(layers: Sequence[Layer], config: MixedPrecisionConfig) -> None:
    names = [layer.name for layer in layers]
    for number, rule in enumerate(config.rules):
        if not fnmatch.filter(names, rule.layers):
            raise InvalidQuantization(
                f"rules[{number}].layers: {rule.layers!r} matches no layer; this model's layers "
                f"are named like {names[0]!r} and {names[-1]!r}",
                param=f"rules[{number}].layers",
            )


def _require_quantizable(layer: Layer, precision: Precision, config: MixedPrecisionConfig) -> None:
    if layer.obstacle is not None:
        raise InvalidQuantization(
            f"layer {layer.name!r} cannot be {precision}: {layer.obstacle}; give it fp16 (a rule "
            f"with layers: {layer.name!r} and precision: fp16)",
            param="rules",
        )
    num_inputs = layer.shape[1]
    if num_inputs % config.group_size:
        raise InvalidQuantization(
            f"group_size: {config.group_size} does not divide the {num_inputs} inputs of layer "
            f"{layer.name!r}; {_dividing(num_inputs)}, or give the layer fp16 by a rule",
            param="group_size",
        )
    if not torch.isfinite(layer.module.weight).all():
        raise InvalidQuantization(
            f"layer {layer.name!r} has weights that are infinite or no numbers; load the model "
            "again, or repair its file",
            param="model",
        )


def _dividing(num_inputs: int) -> str:
    sizes = [str(size) for size in GROUP_SIZES if num_inputs % size == 0]
    return f"use {' or '.join(sizes)}" if sizes else "none does"
