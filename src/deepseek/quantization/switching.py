"""Switching the precision of a quantized model."""

from torch import nn

from deepseek.core.errors import InvalidQuantization
from deepseek.core.precision import Precision, coarser
from deepseek.quantization.config import MixedPrecisionConfig, SwitchPolicy
from deepseek.quantization.nested import NestedLinear


def set_precision(model: nn.Module, precision: Precision | str | None) -> None:
    """Let every quantized layer compute in at most `precision`; None gives each its own back.

    Layers that were left in 16 bits stay so. Raises `InvalidQuantization` where the model was not
    quantized with `dynamic_switch`, whose policy also bounds how low it goes.
    """
    layers = _quantized_layers(model)
    ceiling = Precision.FP16 if precision is None else _precision(precision)
    policy = _policy(model)
    if policy is None and any(coarser(own, ceiling) is not own for own in layers.values()):
        raise InvalidQuantization(
            "the model was quantized without dynamic_switch; quantize it with dynamic_switch: true",
            param="dynamic_switch",
        )
    if policy is not None and coarser(ceiling, policy.floor) is not policy.floor:
        raise InvalidQuantization(
            f"{ceiling} lies below the floor of dynamic_switch, {policy.floor}", param="precision"
        )
    for name, own in layers.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, NestedLinear)  # noqa: S101 - the config names no others
        layer.precision = coarser(own, ceiling)


def _precision(value: Precision | str) -> Precision:
    try:
        return Precision(value)
    except ValueError:
        raise InvalidQuantization(
            f"precision: {value!r} is none of {', '.join(Precision)}", param="precision"
        ) from None


def _quantized_layers(model: nn.Module) -> dict[str, Precision]:
    """Return the precision that each quantized layer was given, by name."""
    saved = getattr(model.config, "quantization_config", None)
    entries = getattr(saved, "layers", None)
    if not entries:
        raise InvalidQuantization(
            f"{type(model).__name__} has no quantized layer whose precision could be set",
            param="model",
        )
    return {name: Precision(entry["precision"]) for name, entry in entries.items()}


def _policy(model: nn.Module) -> SwitchPolicy | None:
    saved = model.config.quantization_config
    return MixedPrecisionConfig.model_validate(saved.config).dynamic_switch
