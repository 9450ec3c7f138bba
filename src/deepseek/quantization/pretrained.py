"""The nested format in transformers: saved by `save_pretrained`, loaded by `from_pretrained`.

Importing this module registers the format; `deepseek.quantization` does so as soon as transformers
is there. `config.json` then names each quantized layer with its precision and how it is laid out.
"""

from typing import TYPE_CHECKING, Any

from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from deepseek.core.errors import CorruptWeights
from deepseek.core.precision import Precision
from deepseek.quantization.nested import NestedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHOD = "deepseek-nested"


@register_quantization_config(METHOD)
class NestedConfig(QuantizationConfigMixin):  # transformers has no types
    """What `config.json` says of a quantized model."""

    def __init__(
        self, layers: dict[str, dict[str, Any]], config: dict[str, Any], **unknown: Any
    ) -> None:
        """Take the layers as `layer_entry` describes them, and the user's config.

        Raises `CorruptWeights` where another version of the format says more.
        """
        unknown.pop("quant_method", None)
        if unknown:
            raise CorruptWeights(
                f"quantization_config has keys that are not known: {', '.join(sorted(unknown))}; "
                "it was saved by a newer version, update this one"
            )
        self.quant_method = METHOD  # registered, not one of the enum
        self.layers = layers
        self.config = config


def layer_entry(layer: NestedLinear) -> dict[str, Any]:
    """Return what must be known of a layer before its planes are loaded."""
    weights = layer.weights()
    return {
        "precision": str(layer.precision),
        "group": weights.group,
        "has_low_plane": weights.low is not None,
        "has_low_scales": weights.low_scale is not None,
    }


@register_quantizer(METHOD)
class NestedQuantizer(HfQuantizer):
    """Puts nested layers where the saved model had them, before transformers loads the planes."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: "PreTrainedModel", **_: Any) -> None:
        for name, entry in self.quantization_config.layers.items():
            try:
                linear = model.get_submodule(name)
            except AttributeError:
                raise CorruptWeights(
                    f"quantization_config names the layer {name!r}, which {type(model).__name__} "
                    "does not have; fetch the model's files again"
                ) from None
            model.set_submodule(name, _empty_layer(linear, entry))
            # Some families initialise `parent.layer.weight` by name; there is no such weight now.
            model.get_submodule(name.rpartition(".")[0])._is_hf_initialized = True

    def _process_model_after_weight_loading(self, model: "PreTrainedModel", **_: Any) -> None:
        for name in self.quantization_config.layers:
            model.get_submodule(name).refresh()

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


def _empty_layer(linear: Any, entry: dict[str, Any]) -> NestedLinear:
    """Return the layer whose planes are to be loaded; on the device of the one it replaces."""
    num_outputs, num_inputs = linear.weight.shape
    if isinstance(linear, Conv1D):
        num_outputs, num_inputs = num_inputs, num_outputs
    layer = NestedLinear(
        num_inputs,
        num_outputs,
        bias=linear.bias is not None,
        group=entry["group"],
        residual=entry["has_low_scales"],
        precision=Precision(entry["precision"]),
    )
    if not entry["has_low_plane"]:
        layer.weight_lo = None
        layer._low_sums = None
    return layer
