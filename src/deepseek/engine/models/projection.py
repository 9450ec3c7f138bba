"""A model's linear layer as its rows see it: each may have an adapter on, and its own precision.

A fused layer (query, key, value; gate, up) keeps the names of its parts, so that a LoRA adapter's
matrices find their place. All adapters of a layer are computed in one pair of products: their
matrices stand side by side along the rank, and a mask keeps of each row its own adapter's part.
That needs no gather, works for any mixture of rows, and can be captured in a CUDA graph; the price
is the rank of all loaded adapters together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeGuard

import torch

from deepseek.engine.batch import NO_CHOICES, RowChoices
from deepseek.engine.linear import FusingLinear, SwitchingLinear
from deepseek.engine.ops.base import Ops


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterWeights:
    """One adapter's part in one projection: adds `inputs @ down.T @ up.T` to the output."""

    down: torch.Tensor
    """(rank, in): LoRA's A; the parts of a fused layer one after another."""
    up: torch.Tensor
    """(out, rank): LoRA's B with the scale multiplied in, zero outside each part's own outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterStack:
    """All adapters of one projection, side by side along the rank."""

    down: torch.Tensor
    """(ranks, in)"""
    up: torch.Tensor
    """(out, ranks)"""
    owners: torch.Tensor
    """(ranks,) int64: index of the adapter that each column belongs to."""
    parts: Mapping[int, AdapterWeights]
    """Each adapter's part by its index; views, so that nothing is held twice."""


def stack_adapters(adapters: Mapping[int, AdapterWeights]) -> AdapterStack | None:
    """Return the adapters side by side; keys are the indices that `RowChoices.adapters` names."""
    if not adapters:
        return None
    ranks = [part.down.shape[0] for part in adapters.values()]
    down = torch.cat([part.down for part in adapters.values()])
    up = torch.cat([part.up for part in adapters.values()], dim=1)
    indices = torch.tensor(list(adapters), device=down.device)
    views = zip(down.split(ranks), up.split(ranks, dim=1), strict=True)
    return AdapterStack(
        down=down,
        up=up,
        owners=indices.repeat_interleave(torch.tensor(ranks, device=down.device)),
        parts={
            index: AdapterWeights(down=own_down, up=own_up)
            for index, (own_down, own_up) in zip(adapters, views, strict=True)
        },
    )


@cache
def _has(cls: type, protocol: type) -> bool:
    """Ask once for each class: a protocol's question takes 20 us, and models have many layers."""
    return issubclass(cls, protocol)


def _is_fusing(linear: torch.nn.Module) -> TypeGuard[FusingLinear]:
    return _has(linear.__class__, FusingLinear)


def _is_switching(linear: torch.nn.Module) -> TypeGuard[SwitchingLinear]:
    return _has(linear.__class__, SwitchingLinear)


class Projection(torch.nn.Module):
    """A linear layer under its checkpoint names, with room for LoRA adapters."""

    def __init__(
        self,
        linear: torch.nn.Module,
        *,
        names: tuple[str, ...],
        in_features: int,
        out_features: tuple[int, ...],
    ) -> None:
        """Wrap a layer that computes the layers `names`, of widths `out_features`, side by side."""
        super().__init__()
        self.names = names
        self.in_features = in_features
        self.out_features = out_features
        self.adapters: AdapterStack | None = None
        """Replaced as a whole, between two steps."""
        self._linear = linear
        self._fusing = linear if _is_fusing(linear) else None
        self._switching = linear if _is_switching(linear) else None

    def forward(self, inputs: torch.Tensor, choices: RowChoices = NO_CHOICES) -> torch.Tensor:
        """Return (rows, out); `choices` is `StepBatch.choices`."""
        out = self._product(inputs, choices)
        adapters, stack = choices.adapters, self.adapters
        if adapters is None or stack is None:
            return out
        hidden = inputs @ stack.down.T
        # Filled, not multiplied: another adapter's overflow must not become NaN in this row.
        hidden.masked_fill_(adapters[:, None] != stack.owners, 0.0)
        return torch.addmm(out, hidden, stack.up.T)

    def add_to(
        self, residual: torch.Tensor, inputs: torch.Tensor, choices: RowChoices
    ) -> torch.Tensor | None:
        """Add the output to `residual` in place, or return it where that is as fast."""
        fusing = self._fusing_for(choices)
        if fusing is not None and fusing.add_to(residual, inputs):
            return None
        return self.forward(inputs, choices)

    def gated_silu(self, inputs: torch.Tensor, choices: RowChoices, ops: Ops) -> torch.Tensor:
        """Return silu(gate) * up, where the output holds gate, then up."""
        fusing = self._fusing_for(choices)
        gated = None if fusing is None else fusing.gated_silu(inputs)
        return ops.gated_silu(self.forward(inputs, choices)) if gated is None else gated

    def _product(self, inputs: torch.Tensor, choices: RowChoices) -> torch.Tensor:
        if self._switching is not None:
            return self._switching.in_precision(inputs, choices.precision)
        out: torch.Tensor = self._linear(inputs)
        return out

    def _fusing_for(self, choices: RowChoices) -> FusingLinear | None:
        """Return the layer that may do what follows the product: no adapter comes in between."""
        return self._fusing if choices.adapters is None or self.adapters is None else None
