"""From a model directory's architecture to the class that runs it, imported on use."""

from importlib import import_module
from pathlib import Path

import torch

from deepseek.core.errors import UnsupportedModel
from deepseek.engine.linear import LinearFactory, make_linear
from deepseek.engine.models.base import Decoder
from deepseek.engine.models.deepseek_v3 import DeepseekV3Decoder
from deepseek.engine.models.formats import BlockFp8Checkpoint
from deepseek.engine.models.mtp import MTPDrafter
from deepseek.engine.models.preparation import Preparation
from deepseek.engine.ops.base import Ops
from deepseek.weights.store.reader import DEFAULT_READING, Reading

ARCHITECTURES = {
    "LlamaForCausalLM": "deepseek.engine.models.llama:LlamaDecoder",
    "MistralForCausalLM": "deepseek.engine.models.llama:LlamaDecoder",
    "Qwen2ForCausalLM": "deepseek.engine.models.llama:LlamaDecoder",
    "Qwen3ForCausalLM": "deepseek.engine.models.llama:LlamaDecoder",
    "GPT2LMHeadModel": "deepseek.engine.models.gpt2:GPT2Decoder",
    "Qwen3MoeForCausalLM": "deepseek.engine.models.moe:Qwen3MoeDecoder",
    "MixtralForCausalLM": "deepseek.engine.models.moe:MixtralDecoder",
    "DeepseekV2ForCausalLM": "deepseek.engine.models.deepseek_v3:DeepseekV2Decoder",
    "DeepseekV3ForCausalLM": "deepseek.engine.models.deepseek_v3:DeepseekV3Decoder",
}


def load_decoder(
    path: Path,
    *,
    dtype: torch.dtype,
    device: str,
    ops: Ops,
    linear_factory: LinearFactory = make_linear,
    head_factory: LinearFactory | None = None,
    preparation: Preparation | None = None,
    reading: Reading = DEFAULT_READING,
) -> Decoder:
    """Load a Hugging Face model directory, its weights read as `reading` says.

    Layers are made by `linear_factory`, that of the logits by `head_factory` where it is another;
    `preparation` may spare making them.

    Raises `UnsupportedModel` for an unknown architecture and `CorruptWeights` where the weights
    are damaged or contradict the config.
    """
    checkpoint = BlockFp8Checkpoint(
        path,
        dtype=dtype,
        device=device,
        linear_factory=linear_factory,
        head_factory=head_factory,
        preparation=preparation,
        reading=reading,
    )
    target = ARCHITECTURES.get(checkpoint.architecture)
    if target is None:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModel(
            f"{path}: architecture {checkpoint.architecture!r} is not supported; known: {known}"
        )
    module, _, name = target.partition(":")
    cls: type[Decoder] = getattr(import_module(module), name)
    return cls(checkpoint, ops)


def load_drafter(
    path: Path,
    *,
    target: Decoder,
    dtype: torch.dtype,
    device: str,
    ops: Ops,
    linear_factory: LinearFactory = make_linear,
    preparation: Preparation | None = None,
    reading: Reading = DEFAULT_READING,
) -> MTPDrafter | None:
    """Load the drafter that comes with the weights of `target`; None where none does."""
    if not isinstance(target, DeepseekV3Decoder):
        return None
    checkpoint = BlockFp8Checkpoint(
        path,
        dtype=dtype,
        device=device,
        linear_factory=linear_factory,
        preparation=preparation,
        reading=reading,
    )
    return MTPDrafter(checkpoint, ops, target=target) if MTPDrafter.is_in(checkpoint) else None
