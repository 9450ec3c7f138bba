"""Mixture of experts: a gate sends each row through a few of many gated MLPs.

Rows are sorted by expert, so that each expert computes its own as one matrix. On a CPU that is a
loop over the experts that have rows, each with its weights packed. On a GPU it is one grouped
product over all experts, whose group sizes never leave the device, so that a step can be captured
in a CUDA graph.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import grouped_mm

from deepseek.core.errors import UnsupportedModel
from deepseek.engine.batch import RowChoices, StepBatch
from deepseek.engine.models.checkpoint import Checkpoint
from deepseek.engine.models.gating import Gate
from deepseek.engine.models.llama import FeedForward
from deepseek.engine.ops.base import Ops

_GROUPED_ALIGNMENT_BYTES = 16
"""`grouped_mm` reads rows by TMA, whose strides are multiples of this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLayout:
    """One layer's experts as the checkpoint names and sizes them."""

    prefix: str
    """Expert n's matrices are `prefix.n.gate.weight`, and so on."""
    num_experts: int
    inner: int
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


class RoutedExperts(Protocol):
    """The experts of one layer."""

    def forward(
        self, states: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor, batch: StepBatch
    ) -> torch.Tensor:
        """Return the weighted sums (rows, hidden) of each row's experts, both (rows, top_k)."""
        ...


class MixtureOfExperts:
    """A layer's feed-forward part: routed experts, and perhaps one that sees every row."""

    def __init__(self, gate: Gate, experts: RoutedExperts, shared: FeedForward | None) -> None:
        self._gate = gate
        self._experts = experts
        self._shared = shared

    def forward(self, states: torch.Tensor, batch: StepBatch) -> torch.Tensor:
        weights, experts = self._gate.forward(states)
        routed = self._experts.forward(states, weights, experts, batch)
        if self._shared is None:
            return routed
        return routed + self._shared.forward(states, batch)

    def add_to(
        self, residual: torch.Tensor, states: torch.Tensor, batch: StepBatch
    ) -> torch.Tensor | None:
        return self.forward(states, batch)  # the next norm adds it in the same pass


def load_experts(checkpoint: Checkpoint, ops: Ops, layout: ExpertLayout) -> RoutedExperts:
    """Read one layer's experts the way the checkpoint's device computes them best.

    Raises `UnsupportedModel` where a GPU cannot.
    """
    if checkpoint.device.startswith("cuda"):
        _require_grouped(checkpoint, layout)
        return GroupedExperts(checkpoint, ops, layout)
    return LoopedExperts(checkpoint, ops, layout)


class LoopedExperts:
    """One pair of linear layers per expert. Reads group sizes on the host: not for graphs."""

    def __init__(self, checkpoint: Checkpoint, ops: Ops, layout: ExpertLayout) -> None:
        hidden = checkpoint.config.hidden_size
        prefixes = [f"{layout.prefix}.{index}" for index in range(layout.num_experts)]
        self._ops = ops
        self._gate_up = [
            checkpoint.linear(
                f"{prefix}.{layout.gate}",
                f"{prefix}.{layout.up}",
                in_features=hidden,
                out_features=(layout.inner, layout.inner),
            )
            for prefix in prefixes
        ]
        self._down = [
            checkpoint.linear(
                f"{prefix}.{layout.down}", in_features=layout.inner, out_features=(hidden,)
            )
            for prefix in prefixes
        ]

    def forward(
        self, states: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor, batch: StepBatch
    ) -> torch.Tensor:
        chosen = experts.flatten()
        order = chosen.argsort(stable=True)
        rows = order // experts.shape[1]
        inputs = states[rows]
        choices = batch.choices.of(rows)
        outputs = torch.empty_like(inputs)
        first = 0
        for expert, count in enumerate(torch.bincount(chosen).tolist()):
            if count:
                own = slice(first, first + count)
                outputs[own] = self._expert(expert, inputs[own], choices.of(own))
                first += count
        return _weighted_sums(outputs, order, weights)

    def _expert(self, index: int, inputs: torch.Tensor, choices: RowChoices) -> torch.Tensor:
        gated = self._ops.gated_silu(self._gate_up[index](inputs, choices))
        down: torch.Tensor = self._down[index](gated, choices)
        return down


class GroupedExperts:
    """All experts of a layer in two grouped products; takes no adapters.

    Never synchronises on GPUs of compute capability 9 and 10 in bfloat16. Elsewhere torch falls
    back to a product per group, which reads the group sizes on the host.
    """

    def __init__(self, checkpoint: Checkpoint, ops: Ops, layout: ExpertLayout) -> None:
        self._ops = ops
        self._gate_up, self._down = _stacked(checkpoint, layout)
        self._numbers = torch.arange(layout.num_experts, device=checkpoint.device)

    def forward(
        self, states: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor, batch: StepBatch
    ) -> torch.Tensor:
        chosen, order = experts.flatten().sort(stable=True)
        # Not bincount: it asks the device for the size of its result.
        ends = torch.searchsorted(chosen, self._numbers, right=True, out_int32=True)
        inputs = states[order // experts.shape[1]]
        gated = self._ops.gated_silu(grouped_mm(inputs, self._gate_up.mT, offs=ends))
        return _weighted_sums(grouped_mm(gated, self._down.mT, offs=ends), order, weights)


def _weighted_sums(
    outputs: torch.Tensor, order: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return (rows, hidden) for (rows * top_k, hidden) sorted by expert, which is overwritten."""
    outputs *= weights.flatten()[order, None]  # in float32, rounded once
    by_row = torch.empty_like(outputs).index_copy_(0, order, outputs)
    return by_row.unflatten(0, weights.shape).sum(dim=1)


def _stacked(checkpoint: Checkpoint, layout: ExpertLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (experts, 2 * inner, hidden) of gate over up, and (experts, hidden, inner) of down."""
    hidden, inner = checkpoint.config.hidden_size, layout.inner
    options = {"dtype": checkpoint.dtype, "device": checkpoint.device}
    gate_up = torch.empty(layout.num_experts, 2 * inner, hidden, **options)
    down = torch.empty(layout.num_experts, hidden, inner, **options)
    for index in range(layout.num_experts):
        prefix = f"{layout.prefix}.{index}"
        gate_up[index, :inner] = checkpoint.tensor(
            f"{prefix}.{layout.gate}.weight", (inner, hidden)
        )
        gate_up[index, inner:] = checkpoint.tensor(f"{prefix}.{layout.up}.weight", (inner, hidden))
        down[index] = checkpoint.tensor(f"{prefix}.{layout.down}.weight", (hidden, inner))
    return gate_up, down


def _require_grouped(checkpoint: Checkpoint, layout: ExpertLayout) -> None:
    if checkpoint.dtype is not torch.bfloat16:
        raise UnsupportedModel(
            f"{checkpoint.path}: on a GPU experts are computed in bfloat16 only; give the model "
            "`dtype: bfloat16`"
        )
    elements = _GROUPED_ALIGNMENT_BYTES // checkpoint.dtype.itemsize
    hidden = checkpoint.config.hidden_size
    if hidden % elements or layout.inner % elements:
        raise UnsupportedModel(
            f"{checkpoint.path}: on a GPU experts must be multiples of {elements} wide, these are "
            f"{hidden} and {layout.inner}; run the model on a CPU pool"
        )
