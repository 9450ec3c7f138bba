"""DeepSeek-V3's multi-token prediction head as a drafter (arXiv:2412.19437, section 2.2).

The head is one more layer. Its row i combines the target's state of position i with the embedding
of the token at i + 1, and predicts the token at i + 2. Embedding and output head are the target's.
"""

from dataclasses import replace

import torch

from deepseek.engine.batch import KVShape, LayerKV, StepBatch
from deepseek.engine.models.checkpoint import Checkpoint
from deepseek.engine.models.deepseek_v3 import DeepseekLayer, DeepseekV3Decoder, latent_kv_shape
from deepseek.engine.models.llama import norm_of_sum
from deepseek.engine.ops.base import Ops


class MTPDrafter:
    """Drafts the token after the next one.

    Its attention state is one layer beside the target's, under the same block tables: row i of a
    step stores at the place of position i, in the drafter's layer. It must see every position that
    the target sees, prompts included; rows of rejected tokens are overwritten as the target's are.
    """

    kv_shape: KVShape
    """Of the head alone."""

    def __init__(self, checkpoint: Checkpoint, ops: Ops, *, target: DeepseekV3Decoder) -> None:
        """Read the first head of the checkpoint (released models have one)."""
        config = checkpoint.config
        hidden = config.hidden_size
        index = config.num_hidden_layers
        prefix = f"model.layers.{index}"
        self.kv_shape = latent_kv_shape(checkpoint, num_layers=1)
        self.target = target
        self._ops = ops
        self._eps: float = config.rms_norm_eps
        self._token_norm = checkpoint.tensor(f"{prefix}.enorm.weight", (hidden,))
        self._state_norm = checkpoint.tensor(f"{prefix}.hnorm.weight", (hidden,))
        self._join = checkpoint.linear(
            f"{prefix}.eh_proj", in_features=2 * hidden, out_features=(hidden,)
        )
        self._layer = DeepseekLayer(checkpoint, ops, index=index, gate=target.gate)
        self._norm = checkpoint.tensor(f"{prefix}.shared_head.norm.weight", (hidden,))

    @property
    def joint_kv_shape(self) -> KVShape:
        """Of the target and the head together; the head's layer is the last."""
        own, target = self.kv_shape, self.target.kv_shape
        return replace(target, num_layers=target.num_layers + own.num_layers)

    @staticmethod
    def is_in(checkpoint: Checkpoint) -> bool:
        """Say whether the checkpoint has a head; its config counts heads that conversions drop."""
        return checkpoint.has(f"model.layers.{checkpoint.config.num_hidden_layers}.eh_proj.weight")

    def forward(
        self,
        states: torch.Tensor,
        next_token_ids: torch.Tensor,
        batch: StepBatch,
        kv: LayerKV,
        *,
        rows: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return (due rows, vocab_size): logits of the token after each row's next one.

        states: what the target's `states` returned for this very `batch`. next_token_ids: (rows,)
        int64, the token that follows each row; where it is not known yet (a rejected draft's row)
        any token will do, as long as that row's draft is not used.
        """
        drafted = self.states(states, next_token_ids, batch, kv)
        return self.target.logits(drafted if rows is None else drafted[rows])

    def states(
        self,
        states: torch.Tensor,
        next_token_ids: torch.Tensor,
        batch: StepBatch,
        kv: LayerKV,
    ) -> torch.Tensor:
        """Return the normed (rows, hidden) that `forward` makes logits from.

        They can stand in for the target's states where one head drafts several tokens in a row.
        """
        batch = replace(batch, token_ids=next_token_ids)
        tokens = self._ops.rms_norm(self.target.embed(next_token_ids), self._token_norm, self._eps)
        normed = self._ops.rms_norm(states, self._state_norm, self._eps)
        residual: torch.Tensor = self._join(torch.cat((tokens, normed), dim=-1), batch.choices)
        out = self._layer.forward(None, residual, self.target.turns(batch), batch, kv)
        return norm_of_sum(self._ops, out, residual, self._norm, self._eps)
