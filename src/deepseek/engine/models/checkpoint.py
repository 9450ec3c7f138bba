"""A model directory's config and its named tensors, as a model's code asks for them."""

from pathlib import Path
from typing import Any

import torch

from deepseek.core.errors import CorruptWeights
from deepseek.engine.linear import LinearFactory, make_linear
from deepseek.engine.models.configs import read_config
from deepseek.engine.models.projection import Projection
from deepseek.engine.models.tensor_source import TensorSource, open_source
from deepseek.weights.store.reader import DEFAULT_READING, Reading


class Checkpoint:
    """One directory's config and tensors, converted to a number format and device on reading."""

    def __init__(
        self,
        path: Path,
        *,
        dtype: torch.dtype,
        device: str,
        linear_factory: LinearFactory = make_linear,
        head_factory: LinearFactory | None = None,
        source: TensorSource | None = None,
        reading: Reading = DEFAULT_READING,
    ) -> None:
        """Open the weights; tensors are read when asked for, layers made by `linear_factory`.

        `head_factory` makes the one of the logits, where that is to be another. `source`: where
        tensors come from, if not from the directory; `reading`: how chunks are checked and opened.
        """
        self._linear_factory = linear_factory
        self._head_factory = head_factory or linear_factory
        self.projections: list[Projection] = []
        """Every layer that `linear` has made: where an adapter may act."""
        self.path = path
        self.dtype = dtype
        self.device = device
        self.config: Any = read_config(path)
        """Of the family's own class in `deepseek.engine.models.configs`."""
        self.architecture: str = self.config.architecture
        self.source: TensorSource = open_source(path, reading) if source is None else source

    def has(self, name: str) -> bool:
        """Say whether a tensor of this name exists."""
        return name in self.source

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """Return a tensor; `CorruptWeights` where it is missing or not of the config's shape.

        Where device and number format are those of the source it may be the stored memory itself.
        """
        if name not in self.source:
            raise CorruptWeights(f"{self.path}: tensor {name!r} is missing from the weights")
        value = self.source.tensor(name)
        if shape is not None and tuple(value.shape) != shape:
            raise CorruptWeights(
                f"{self.path}: tensor {name!r} has shape {tuple(value.shape)}, "
                f"config.json says {shape}"
            )
        copy = not self.source.is_lasting
        return value.to(device=self.device, dtype=self.dtype, copy=copy)

    def linear(
        self, *names: str, in_features: int, out_features: tuple[int, ...], transposed: bool = False
    ) -> Projection:
        """Return one layer that computes the named layers side by side.

        Names are without `.weight`; biases are taken where the checkpoint has them. `transposed`
        says that weights are stored (in, out), as GPT-2 does. A model must call the layer with its
        batch's choices: whoever makes a layer here lets rows choose adapter and precision.
        """
        weights = []
        for name, out in zip(names, out_features, strict=True):
            shape = (in_features, out) if transposed else (out, in_features)
            weight = self.tensor(f"{name}.weight", shape)
            weights.append(weight.T if transposed else weight)
        bias = None
        if self.has(f"{names[0]}.bias"):
            pairs = zip(names, out_features, strict=True)
            bias = torch.cat([self.tensor(f"{name}.bias", (out,)) for name, out in pairs])
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        projection = Projection(
            self._linear_factory(weight, bias),
            names=names,
            in_features=in_features,
            out_features=out_features,
        )
        self.projections.append(projection)
        return projection

    def head(self, weight: torch.Tensor) -> torch.nn.Module:
        """Return the layer that makes logits, (vocab, hidden); no adapter changes it."""
        return self._head_factory(weight)
