"""A model whose layers can be set to any precision at once: what the search plays on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from deepseek.core.precision import Precision
from deepseek.quantization.calibration import Part
from deepseek.quantization.config import MixedPrecisionConfig
from deepseek.quantization.editing import ModelEdit
from deepseek.quantization.fidelity import Fidelity, Yardstick
from deepseek.quantization.layer_weights import matrix_of, nested_layers
from deepseek.quantization.layers import Layer
from deepseek.quantization.nested import NestedLinear, unpack
from deepseek.quantization.search import Unit
from deepseek.weights.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerState:
    """What a report says of one layer."""

    precision: Precision
    error: float
    num_bytes: int


class LayerBoard:
    """Both forms of every layer that the config quantizes: nested, and as it was, in 16 bits."""

    def __init__(
        self,
        edit: ModelEdit,
        layers: Sequence[Layer],
        *,
        assignment: Mapping[str, Precision],
        config: MixedPrecisionConfig,
        search: Yardstick,
        held_out: Yardstick,
        calibration: Part,
        progress: Progress,
    ) -> None:
        """Build the nested forms from the float weights, then convert the model to 16 bits."""
        self._edit = edit
        self._search, self._held_out = search, held_out
        self._assignment = assignment
        # The edit keeps the same tensors, so that these cost nothing.
        self._float = {layer.name: matrix_of(layer.module) for layer in layers}
        quantized = [layer for layer in layers if assignment[layer.name] is not Precision.FP16]
        progress.stage("packing weights", total=len(quantized))
        self._nested: dict[str, NestedLinear] = {}
        for name, nested in nested_layers(edit.model, quantized, config=config, part=calibration):
            self._nested[name] = nested
            progress.advance()
        edit.convert_to_16_bits()
        for name, nested in self._nested.items():
            _adopt_bias(nested, edit.original(name))
        for name, nested in self._nested.items():
            nested.precision = assignment[name]
            edit.replace(name, nested)

    def set(self, layers: Sequence[str], precision: Precision) -> None:
        """Let these layers compute in `precision`."""
        for name in layers:
            if precision is Precision.FP16:
                self._edit.replace(name, self._edit.original(name))
            else:
                self._nested[name].precision = precision
                self._edit.replace(name, self._nested[name])

    def divergence(self) -> Fidelity:
        """Return the model's distance on the search data."""
        return self._search.measure(self._edit.model)

    def held_out(self) -> Fidelity:
        """Return the model's distance on the held-out data."""
        return self._held_out.measure(self._edit.model)

    def quantized(self) -> dict[str, NestedLinear]:
        """Return the layers that are nested at this moment."""
        found = ((name, self._edit.model.get_submodule(name)) for name in self._nested)
        return {name: module for name, module in found if isinstance(module, NestedLinear)}

    def drop_low_planes(self) -> None:
        """Free what int4 layers do not read; they cannot become int8 again."""
        for layer in self.quantized().values():
            if layer.precision is Precision.INT4:
                layer.weight_lo = layer.weight_lo_scale = None
                layer.refresh()

    @torch.inference_mode()
    def state(self, name: str) -> LayerState:
        """Return what a layer is at this moment."""
        module = self._edit.model.get_submodule(name)
        reference = self._float[name].float()
        if isinstance(module, NestedLinear):
            precision = module.precision
            weight = unpack(module.weights(), precision)
        else:
            precision = Precision.FP16
            weight = matrix_of(module).float()
        norm = reference.norm().item()
        return LayerState(
            precision=precision,
            error=(weight - reference).norm().item() / norm if norm else 0.0,
            num_bytes=module_bytes(module),
        )


def units_of(layers: Sequence[Layer], assignment: Mapping[str, Precision]) -> list[Unit]:
    """Group the layers that the config quantizes; a unit starts at one precision."""
    groups: dict[tuple[str, Precision], list[Layer]] = {}
    for layer in layers:
        precision = assignment[layer.name]
        if precision is not Precision.FP16:
            groups.setdefault((layer.unit, precision), []).append(layer)
    shared = [unit for unit, _ in groups]
    return [
        Unit(
            name=unit if shared.count(unit) == 1 else f"{unit} ({precision})",
            layers=tuple(layer.name for layer in members),
            start=precision,
            num_weights=sum(layer.shape[0] * layer.shape[1] for layer in members),
        )
        for (unit, precision), members in groups.items()
    ]


def module_bytes(module: nn.Module) -> int:
    """Return the memory of a module's own parameters and buffers."""
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return sum(tensor.nbytes for tensor in tensors)


def _adopt_bias(nested: NestedLinear, linear: nn.Module) -> None:
    """Give the nested layer the bias in 16 bits, as it will be saved and loaded."""
    if linear.bias is not None:
        nested.bias = linear.bias.detach().clone()
        nested.refresh()
