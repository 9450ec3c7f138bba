"""Gates: which experts a row goes to, and with what weight.

All of them score in float32: the order of nearly equal experts decides the whole row.
"""

from typing import Protocol

import torch
from torch.nn.functional import linear, softmax

from deepseek.core.errors import UnsupportedModel
from deepseek.engine.models.checkpoint import Checkpoint
from deepseek.engine.models.formats import float32_tensor

_TINY = 1e-20
"""Keeps the sum of sigmoids, which may all be 0, from dividing by 0; the family's own value."""


class Gate(Protocol):
    """Chooses experts. Never synchronises with the host."""

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return, for (rows, hidden), float32 weights and int64 experts, both (rows, top_k)."""
        ...


class SoftmaxGate:
    """The most probable experts (Mixtral, arXiv:2401.04088; Qwen3-MoE, arXiv:2505.09388)."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        prefix: str,
        *,
        num_experts: int,
        top_k: int,
        normalized: bool,
    ) -> None:
        """Read the gate; `normalized` makes the weights of a row sum to 1."""
        _require_choice(checkpoint, num_experts=num_experts, top_k=top_k)
        hidden = checkpoint.config.hidden_size
        self._weight = checkpoint.tensor(f"{prefix}.weight", (num_experts, hidden))
        self._top_k = top_k
        self._normalized = normalized

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        probabilities = softmax(linear(states, self._weight), dim=-1, dtype=torch.float32)
        weights, experts = probabilities.topk(self._top_k, dim=-1)
        if self._normalized:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights, experts


class DeepseekV2Gate:
    """The most probable experts, of the most probable groups where there are groups.

    arXiv:2405.04434, section 2.2.2.
    """

    def __init__(self, checkpoint: Checkpoint, prefix: str) -> None:
        config = checkpoint.config
        num_experts: int = config.n_routed_experts
        self._top_k: int = config.num_experts_per_tok or 0
        _require_choice(checkpoint, num_experts=num_experts, top_k=self._top_k)
        self._groups = None
        if config.topk_method == "group_limited_greedy":
            self._groups = _groups(checkpoint)
        self._scale: float = config.routed_scaling_factor
        self._weight = float32_tensor(
            checkpoint, f"{prefix}.weight", (num_experts, config.hidden_size)
        )

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = softmax(linear(states.float(), self._weight), dim=-1)
        if self._groups is not None:
            num_groups, num_kept = self._groups
            leaders = scores.unflatten(-1, (num_groups, -1)).amax(dim=-1)
            scores = _keep_best_groups(scores, leaders, num_kept=num_kept, fill=0.0)
        weights, experts = scores.topk(self._top_k, dim=-1, sorted=False)
        return weights * self._scale, experts


class DeepseekV3Gate:
    """Sigmoid scores; a bias, learned to balance load, takes part in the choice only.

    arXiv:2412.19437, section 2.1.2. A group's rank is the sum of its two best experts.
    """

    def __init__(self, checkpoint: Checkpoint, prefix: str) -> None:
        config = checkpoint.config
        num_experts: int = config.n_routed_experts
        self._top_k: int = config.num_experts_per_tok or 0
        _require_choice(checkpoint, num_experts=num_experts, top_k=self._top_k)
        self._num_groups, self._num_kept = _groups(checkpoint, smallest=2)
        self._normalized: bool = config.norm_topk_prob
        self._scale: float = config.routed_scaling_factor
        self._weight = float32_tensor(
            checkpoint, f"{prefix}.weight", (num_experts, config.hidden_size)
        )
        self._bias = float32_tensor(checkpoint, f"{prefix}.e_score_correction_bias", (num_experts,))

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = linear(states.float(), self._weight).sigmoid()
        ranks = scores + self._bias
        leaders = ranks.unflatten(-1, (self._num_groups, -1)).topk(2, dim=-1).values.sum(dim=-1)
        ranks = _keep_best_groups(ranks, leaders, num_kept=self._num_kept, fill=-torch.inf)
        experts = ranks.topk(self._top_k, dim=-1, sorted=False).indices
        weights = scores.gather(1, experts)
        if self._normalized:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + _TINY)
        return weights * self._scale, experts


def _keep_best_groups(
    scores: torch.Tensor, leaders: torch.Tensor, *, num_kept: int, fill: float
) -> torch.Tensor:
    """Overwrite the scores (rows, experts) of all but the groups that lead in (rows, groups)."""
    best = leaders.topk(num_kept, dim=-1, sorted=False).indices
    dropped = torch.ones_like(leaders, dtype=torch.bool).scatter_(1, best, False)
    grouped = scores.unflatten(-1, (leaders.shape[1], -1))
    return grouped.masked_fill(dropped[..., None], fill).flatten(1)


def _require_choice(checkpoint: Checkpoint, *, num_experts: int, top_k: int) -> None:
    if not 1 <= top_k <= num_experts:
        raise UnsupportedModel(
            f"{checkpoint.path}: config.json asks for {top_k} of {num_experts} experts per token"
        )


def _groups(checkpoint: Checkpoint, *, smallest: int = 1) -> tuple[int, int]:
    """Return the numbers of groups and of groups kept, of at least `smallest` experts each."""
    config = checkpoint.config
    num_groups, num_kept = config.n_group or 1, config.topk_group or 1
    size, rest = divmod(config.n_routed_experts, num_groups)
    is_possible = rest == 0 and size >= smallest and num_kept <= num_groups
    if not is_possible or config.num_experts_per_tok > num_kept * size:
        raise UnsupportedModel(
            f"{checkpoint.path}: config.json asks for {config.num_experts_per_tok} of "
            f"{config.n_routed_experts} experts, from the best {num_kept} of {num_groups} groups"
        )
    return num_groups, num_kept
