"""Exports a quantized model as compressed-tensors, which vLLM and stock transformers read.

INT4 layers are the high plane as it is (symmetric, W4A16). INT8 layers join both planes on their
one grid of 256 steps from -136 to 119, which that format writes as bytes with a zero point of 8.
What was switchable is fixed then, at the precision that each layer has.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from deepseek.core.errors import ConfigurationError, InvalidQuantization
from deepseek.core.precision import Precision
from deepseek.quantization.layers import linear_names
from deepseek.quantization.nested import NestedLinear
from deepseek.quantization.nested.planes import high_nibbles, low_nibbles, matrix

_ZERO_POINT = 8
"""Brings -136 to 119 into the range of a signed byte."""
_FORMAT = "pack-quantized"


def export(model: PreTrainedModel, directory: Path | str) -> None:
    """Write weights and config; the directory is made where it is absent.

    Raises `InvalidQuantization` for a model that is not quantized, or a layer that the format
    cannot hold; `ConfigurationError` where the package compressed-tensors is not installed.
    """
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, NestedLinear)
    }
    if not layers:
        raise InvalidQuantization(
            f"{type(model).__name__} has no quantized layer; apply a quantization first",
            param="model",
        )
    _require_exportable(model, layers)
    with _described_as(model, _config(model, layers)):
        model.save_pretrained(directory, state_dict=_state_dict(model, layers))


def _require_exportable(model: PreTrainedModel, layers: Mapping[str, NestedLinear]) -> None:
    with torch.device("meta"):
        skeleton = type(model)(model.config)
    for name, layer in layers.items():
        if isinstance(skeleton.get_submodule(name), Conv1D):
            raise InvalidQuantization(
                f"layer {name!r} is a Conv1D in {type(model).__name__}, which compressed-tensors "
                "does not know; save the model in the nested format instead",
                param="format",
            )
        if layer.precision is Precision.INT8 and layer.weight_lo_scale is not None:
            raise InvalidQuantization(
                f"layer {name!r} holds int8 as int4 and a residual with scales of its own, which "
                "compressed-tensors cannot express; use int4_algorithm: rounding, or export it as "
                "int4 (set_precision)",
                param="int4_algorithm",
            )


def _state_dict(
    model: PreTrainedModel, layers: Mapping[str, NestedLinear]
) -> dict[str, torch.Tensor]:
    prefixes = tuple(f"{name}." for name in layers)
    state = {
        name: tensor for name, tensor in model.state_dict().items() if not name.startswith(prefixes)
    }
    for name, layer in layers.items():
        state.update({f"{name}.{key}": value for key, value in _packed(layer).items()})
    return state


def _packed(layer: NestedLinear) -> dict[str, torch.Tensor]:
    pack = _library().compressors.pack_quantized.helpers.pack_to_int32
    weights = layer.weights()
    high = matrix(high_nibbles(weights.high), out_features=weights.out_features)
    scales = weights.scale.transpose(1, 2).flatten(0, 1)[: weights.out_features].contiguous()
    packed = {"weight_shape": torch.tensor(high.shape)}
    if layer.precision is Precision.INT4:
        packed.update(weight_packed=pack(high, 4), weight_scale=scales)
    else:
        low = matrix(low_nibbles(weights.low), out_features=weights.out_features)
        both = 16 * high.to(torch.int16) + low + _ZERO_POINT
        zeros = torch.full(scales.shape, _ZERO_POINT, dtype=torch.int8)
        packed.update(
            weight_packed=pack(both.to(torch.int8), 8),
            weight_scale=scales / 16,  # exact: the exponent moves
            weight_zero_point=pack(zeros, 8, packed_dim=0),
        )
    if layer.bias is not None:
        packed["bias"] = layer.bias
    return packed


def _config(model: PreTrainedModel, layers: Mapping[str, NestedLinear]) -> dict[str, Any]:
    library = _library().quantization
    groups: dict[tuple[Precision, int], list[str]] = {}
    for name, layer in layers.items():
        groups.setdefault((layer.precision, layer.weights().group), []).append(name)
    schemes = {
        f"group_{number}": library.QuantizationScheme(
            targets=[f"re:^{re.escape(name)}$" for name in names],
            weights=library.QuantizationArgs(
                num_bits=4 if precision is Precision.INT4 else 8,
                type="int",
                strategy="group",
                group_size=group,
                symmetric=precision is Precision.INT4,
                dynamic=False,
            ),
            format=_FORMAT,
        )
        for number, ((precision, group), names) in enumerate(groups.items())
    }
    config = library.QuantizationConfig(
        config_groups=schemes,
        format=_FORMAT,
        quantization_status="compressed",
        ignore=[name for name in linear_names(model) if name not in layers],
    )
    return config.model_dump(mode="json", exclude_none=True)


@contextmanager
def _described_as(model: PreTrainedModel, quantization_config: dict[str, Any]) -> Iterator[None]:
    """Let the model be saved under another format's description for a moment."""
    own_config, own_quantizer = model.config.quantization_config, model.hf_quantizer
    model.config.quantization_config, model.hf_quantizer = quantization_config, None
    try:
        yield
    finally:
        model.config.quantization_config, model.hf_quantizer = own_config, own_quantizer


def _library() -> Any:
    try:
        # Optional, and wanted by exports alone.
        import compressed_tensors.compressors.pack_quantized.helpers  # noqa: PLC0415
        import compressed_tensors.quantization  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            "exporting needs the package compressed-tensors, which is not installed: "
            "pip install 'deepseek-platform[export]'"
        ) from error
    return compressed_tensors
