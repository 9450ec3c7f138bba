"""Tables of rotary position embeddings (arXiv:2104.09864), scaled as a config's rope type says."""

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from deepseek.core.errors import UnsupportedModel
from deepseek.engine.models.checkpoint import Checkpoint

_DEPENDS_ON_LENGTH = ("dynamic", "longrope")
"""Types whose angles change with the length of each request; one table cannot hold them."""


def rotary_table(checkpoint: Checkpoint, *, dim: int, max_positions: int) -> torch.Tensor:
    """Return float32 (positions, dim): cosines of dim / 2 angles, then their sines.

    Raises `UnsupportedModel` for a rope type that no single table can hold.
    """
    config = checkpoint.config
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind == "default":
        exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
        inv_freq, scale = 1.0 / rope.get("rope_theta", 10000.0) ** exponents, 1.0
    elif kind in ROPE_INIT_FUNCTIONS and kind not in _DEPENDS_ON_LENGTH:
        inv_freq, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    else:
        raise UnsupportedModel(f"{checkpoint.path}: rope type {kind!r} is not supported")
    angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), inv_freq)
    return (torch.cat((angles.cos(), angles.sin()), dim=-1) * scale).to(checkpoint.device)
