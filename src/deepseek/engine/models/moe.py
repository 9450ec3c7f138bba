"""Llama-like families whose feed-forward part is a mixture of experts: Qwen3-MoE and Mixtral."""

from deepseek.engine.models.checkpoint import Checkpoint
from deepseek.engine.models.experts import ExpertLayout, MixtureOfExperts, load_experts
from deepseek.engine.models.gating import SoftmaxGate
from deepseek.engine.models.llama import FeedForward, LlamaDecoder
from deepseek.engine.ops.base import Ops


class Qwen3MoeDecoder(LlamaDecoder):
    """Qwen3 with experts in every layer, or in every few (arXiv:2505.09388)."""

    def _feed_forward(self, checkpoint: Checkpoint, ops: Ops, index: int) -> FeedForward:
        config = checkpoint.config
        is_sparse = config.num_experts > 0 and (index + 1) % config.decoder_sparse_step == 0
        if index in config.mlp_only_layers or not is_sparse:
            return super()._feed_forward(checkpoint, ops, index)
        prefix = f"model.layers.{index}.mlp"
        gate = SoftmaxGate(
            checkpoint,
            f"{prefix}.gate",
            num_experts=config.num_experts,
            top_k=config.num_experts_per_tok,
            normalized=config.norm_topk_prob,
        )
        layout = ExpertLayout(
            prefix=f"{prefix}.experts",
            num_experts=config.num_experts,
            inner=config.moe_intermediate_size,
        )
        return MixtureOfExperts(gate, load_experts(checkpoint, ops, layout), None)


class MixtralDecoder(LlamaDecoder):
    """Mistral with experts in every layer (arXiv:2401.04088)."""

    def _feed_forward(self, checkpoint: Checkpoint, ops: Ops, index: int) -> FeedForward:
        config = checkpoint.config
        prefix = f"model.layers.{index}.block_sparse_moe"
        gate = SoftmaxGate(
            checkpoint,
            f"{prefix}.gate",
            num_experts=config.num_experts,
            top_k=config.num_experts_per_tok,
            normalized=True,
        )
        layout = ExpertLayout(
            prefix=f"{prefix}.experts",
            num_experts=config.num_experts,
            inner=config.intermediate_size,
            gate="w1",
            up="w3",
            down="w2",
        )
        return MixtureOfExperts(gate, load_experts(checkpoint, ops, layout), None)
