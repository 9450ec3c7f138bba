"""A model directory's config and its named tensors, as a model's code asks for them."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from deepseek.core.errors import CorruptWeights
from deepseek.engine.linear import LinearFactory, make_linear
from deepseek.engine.models.configs import read_config
from deepseek.engine.models.preparation import LinearWeights, Preparation, ReadAnew
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
        preparation: Preparation | None = None,
        reading: Reading = DEFAULT_READING,
    ) -> None:
        """Tensors are read when asked for, layers made by `linear_factory`.

        `head_factory` makes the one of the logits, where that is to be another. `source`: where
        tensors come from, if not from the directory; `reading`: how its chunks are checked and
        opened; `preparation`: what may spare reading them.
        """
        self._linear_factory = linear_factory
        self._head_factory = head_factory or linear_factory
        self._given_source = source
        self._reading = reading
        self._preparation: Preparation = preparation or ReadAnew()
        self.projections: list[Projection] = []
        """Every layer that `linear` has made: where an adapter may act."""
        self.path = path
        self.dtype = dtype
        self.device = device
        self.config: Any = read_config(path)
        """Of the family's own class in `deepseek.engine.models.configs`."""
        self.architecture: str = self.config.architecture

    @cached_property
    def source(self) -> TensorSource:
        """The stored tensors; not even opened where everything has been prepared."""
        return (
            open_source(self.path, self._reading)
            if self._given_source is None
            else self._given_source
        )

    def has(self, name: str) -> bool:
        """Say whether a tensor of this name exists."""
        return self._preparation.has(name, lambda: name in self.source)

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """Return a tensor; `CorruptWeights` where it is missing or not of the config's shape.

        Where device and number format are those of the source it may be the stored memory itself.
        """
        kind = str(self.dtype).removeprefix("torch.")
        return self._preparation.tensor(f"{name}:{kind}", lambda: self.read(name, shape))

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """Return the same from the source, whatever has been prepared."""
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

        def read() -> LinearWeights:
            return self._read_side_by_side(
                names, in_features=in_features, out_features=out_features, transposed=transposed
            )

        projection = Projection(
            self._preparation.layer("+".join(names), read, self._linear_factory),
            names=names,
            in_features=in_features,
            out_features=out_features,
        )
        self.projections.append(projection)
        return projection

    def head(
        self, name: str, shape: tuple[int, int], *, tied: torch.Tensor | None
    ) -> torch.nn.Module:
        """Return the layer that makes logits, of shape (vocab, hidden); no adapter changes it.

        It computes with the tensor `name`, or with the embedding that it is `tied` to.
        """

        def read() -> LinearWeights:
            return self.read(name, shape) if tied is None else tied, None

        return self._preparation.layer("head", read, self._head_factory)

    def _read_side_by_side(
        self,
        names: tuple[str, ...],
        *,
        in_features: int,
        out_features: tuple[int, ...],
        transposed: bool,
    ) -> LinearWeights:
        weights = []
        for name, out in zip(names, out_features, strict=True):
            shape = (in_features, out) if transposed else (out, in_features)
            weight = self.read(f"{name}.weight", shape)
            weights.append(weight.T if transposed else weight)
        bias = None
        if f"{names[0]}.bias" in self.source:
            pairs = zip(names, out_features, strict=True)
            bias = torch.cat([self.read(f"{name}.bias", (out,)) for name, out in pairs])
        return torch.cat(weights) if len(weights) > 1 else weights[0], bias
