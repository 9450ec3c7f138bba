"""Switching the precision of a quantized model: by hand, or as its policy says for a request."""

from torch import nn

from deepseek.core.errors import InvalidQuantization
from deepseek.core.precision import Precision
from deepseek.quantization.config import MixedPrecisionConfig, SwitchPolicy
from deepseek.quantization.nested import NestedLinear

_ORDER = list(Precision)


def set_precision(model: nn.Module, precision: Precision | str | None) -> None:
    """Let every quantized layer compute in at most `precision`; None gives each its own back.

    Layers that were left in 16 bits stay so. Raises `InvalidQuantization` where the model was not
    quantized with `dynamic_switch`, whose policy also bounds how low it goes.
    """
    layers = _quantized_layers(model)
    ceiling = Precision.FP16 if precision is None else _precision(precision)
    policy = _policy(model)
    if policy is None and any(_lower(own, ceiling) is not own for own in layers.values()):
        raise InvalidQuantization(
            "the model was quantized without dynamic_switch; quantize it with dynamic_switch: true",
            param="dynamic_switch",
        )
    if policy is not None and _lower(ceiling, policy.floor) is not policy.floor:
        raise InvalidQuantization(
            f"{ceiling} lies below the floor of dynamic_switch, {policy.floor}", param="precision"
        )
    for name, own in layers.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, NestedLinear)  # noqa: S101 - the config names no others
        layer.precision = _lower(own, ceiling)


def choose_precision(
    policy: SwitchPolicy,
    *,
    request_class: str | None = None,
    num_input_tokens: int = 0,
    is_under_pressure: bool = False,
) -> Precision:
    """Return the precision that a policy gives a request which does not name one itself.

    FP16 stands for the layers' own precisions.
    """
    is_long = policy.long_input_tokens is not None and num_input_tokens >= policy.long_input_tokens
    if is_long or (is_under_pressure and policy.shed_load):
        return policy.floor
    wanted = policy.by_class.get(request_class or "", Precision.FP16)
    return max(wanted, policy.floor, key=_ORDER.index)


def _lower(left: Precision, right: Precision) -> Precision:
    return min(left, right, key=_ORDER.index)


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
