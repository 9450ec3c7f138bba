"""Named tensors of a Hugging Face model directory, read straight from safetensors."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from deepseek.core.errors import CorruptWeights
from deepseek.engine.linear import LinearFactory, make_linear
from deepseek.engine.models.configs import read_config
from deepseek.engine.models.projection import Projection


class Checkpoint:
    """One directory's config and tensors, converted to a number format and device on reading."""

    def __init__(
        self,
        path: Path,
        *,
        dtype: torch.dtype,
        device: str,
        linear_factory: LinearFactory = make_linear,
    ) -> None:
        """Open the files; tensors are read when asked for, layers made by `linear_factory`."""
        self._linear_factory = linear_factory
        self.projections: list[Projection] = []
        """Every layer that `linear` has made: where an adapter may act."""
        self.path = path
        self.dtype = dtype
        self.device = device
        self.config: Any = read_config(path)
        """Of the family's own class in `deepseek.engine.models.configs`."""
        self.architecture: str = self.config.architecture
        self._files = {}
        for file in self._weight_files():
            try:
                handle = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise CorruptWeights(f"{file}: damaged ({error}); fetch the file again") from error
            self._files.update(dict.fromkeys(handle.keys(), handle))

    def has(self, name: str) -> bool:
        """Say whether a tensor of this name exists."""
        return name in self._files

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """Return a tensor; `CorruptWeights` where it is missing or not of the config's shape."""
        handle = self._files.get(name)
        if handle is None:
            raise CorruptWeights(f"{self.path}: tensor {name!r} is missing from the weights")
        value: torch.Tensor = handle.get_tensor(name)
        if shape is not None and tuple(value.shape) != shape:
            raise CorruptWeights(
                f"{self.path}: tensor {name!r} has shape {tuple(value.shape)}, "
                f"config.json says {shape}"
            )
        # A copy: a mapped tensor would keep the file's pages in memory beside the packed ones.
        return value.to(device=self.device, dtype=self.dtype, copy=True)

    def linear(
        self, *names: str, in_features: int, out_features: tuple[int, ...], transposed: bool = False
    ) -> Projection:
        """Return one layer that computes the named layers side by side.

        Names are without `.weight`; biases are taken where the checkpoint has them. `transposed`
        says that weights are stored (in, out), as GPT-2 does. A model must call the layer with its
        batch's adapters: whoever makes a layer here lets adapters change it.
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
        return self._linear_factory(weight)

    def _weight_files(self) -> list[Path]:
        index = self.path / "model.safetensors.index.json"
        if index.exists():
            names = json.loads(index.read_text())["weight_map"].values()
            return [self.path / name for name in sorted(set(names))]
        return [self.path / "model.safetensors"]
