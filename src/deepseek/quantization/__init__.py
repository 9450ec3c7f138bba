"""Mixed precision: which layer computes in which number format, and the weights that allow it.

    from deepseek import load_model
    from deepseek.quantization import MixedPrecisionConfig

    model = load_model("smollm2-135m")
    report = model.apply_quantization(MixedPrecisionConfig(attention_layers="int8"))

Light to import: names load their module when they are used, and the format for transformers'
`from_pretrained` is registered when transformers is there to register it with.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deepseek.quantization.registration import register_with_transformers

if TYPE_CHECKING:
    from deepseek.quantization.application import apply_quantization
    from deepseek.quantization.config import LayerRule, MixedPrecisionConfig, SwitchPolicy
    from deepseek.quantization.exporting import export
    from deepseek.quantization.loader import load_model
    from deepseek.quantization.report import QuantizationReport
    from deepseek.quantization.switching import set_precision

__all__ = [
    "LayerRule",
    "MixedPrecisionConfig",
    "QuantizationReport",
    "SwitchPolicy",
    "apply_quantization",
    "export",
    "load_model",
    "set_precision",
]

_HOMES = {
    "LayerRule": "config",
    "MixedPrecisionConfig": "config",
    "QuantizationReport": "report",
    "SwitchPolicy": "config",
    "apply_quantization": "application",
    "export": "exporting",
    "load_model": "loader",
    "set_precision": "switching",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


register_with_transformers()
