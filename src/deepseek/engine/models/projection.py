"""A model's linear layer as an adapter sees it: several named layers in one, some rows adapted.

A fused layer (query, key, value; gate, up) keeps the names of its parts, so that a LoRA adapter's
matrices find their place. All adapters of a layer are computed in one pair of products: their
matrices stand side by side along the rank, and a mask keeps of each row its own adapter's part.
That needs no gather, works for any mixture of rows, and can be captured in a CUDA graph; the price
is the rank of all loaded adapters together.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterWeights:
    """One adapter's part in one projection: adds `inputs @ down.T @ up.T` to the output."""

    down: torch.Tensor
    """(rank, in): LoRA's A; the parts of a fused layer one after another."""
    up: torch.Tensor
    """(out, rank): LoRA's B with the scale multiplied in, zero outside each part's own outputs."""


class Projection(torch.nn.Module):
    """A linear layer under its checkpoint names, with room for LoRA adapters."""

    def __init__(
        self, linear: torch.nn.Module, *, names: tuple[str, ...], out_features: tuple[int, ...]
    ) -> None:
        """Wrap a layer that computes the layers `names`, of widths `out_features`, side by side."""
        super().__init__()
        self.names = names
        self.out_features = out_features
        self._linear = linear
        self._down: torch.Tensor | None = None
        self._up: torch.Tensor | None = None
        self._owners: torch.Tensor | None = None

    def set_adapters(self, adapters: dict[int, AdapterWeights]) -> None:
        """Replace all adapters; keys are the indices that `StepBatch.adapters` names."""
        if not adapters:
            self._down = self._up = self._owners = None
            return
        self._down = torch.cat([part.down for part in adapters.values()])
        self._up = torch.cat([part.up for part in adapters.values()], dim=1)
        owners = [
            torch.full((part.down.shape[0],), index, device=part.down.device)
            for index, part in adapters.items()
        ]
        self._owners = torch.cat(owners)

    def forward(self, inputs: torch.Tensor, adapters: torch.Tensor | None = None) -> torch.Tensor:
        """Return (rows, out); `adapters` is `StepBatch.adapters`."""
        out: torch.Tensor = self._linear(inputs)
        if adapters is None or self._down is None or self._up is None:
            return out
        hidden = inputs @ self._down.T
        hidden *= adapters[:, None] == self._owners
        return torch.addmm(out, hidden, self._up.T)
