"""SmolLM2 with weights that no number format favours.

The published weights lie on a 4-bit grid, so that rounding them costs almost nothing. A rotation of
the hidden state leaves every output as it is and the weights on no grid (as QuaRot does it,
arXiv:2404.00456): gains of the norms move into the layers behind them, then all that writes the
hidden state is multiplied by an orthogonal matrix and all that reads it by its inverse.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


def rotated_model(directory: Path) -> Any:
    """Return the model in float32, rotated by a random orthogonal matrix; the head is untied."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    body = model.model
    generator = torch.Generator().manual_seed(0)
    size = model.config.hidden_size
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    head = torch.nn.Linear(size, model.config.vocab_size, bias=False)
    head.weight.data = _reading(body.embed_tokens.weight, body.norm.weight, rotation)
    model.config.tie_word_embeddings = False
    model.lm_head = head
    body.embed_tokens.weight = torch.nn.Parameter(
        (body.embed_tokens.weight.double() @ rotation).float()
    )
    body.norm.weight.data.fill_(1.0)
    for layer in body.layers:
        _rotate_layer(layer, rotation)
    return model.requires_grad_(False)


def _rotate_layer(layer: Any, rotation: torch.Tensor) -> None:
    attention, mlp = layer.self_attn, layer.mlp
    readers = (
        (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
        (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
    )
    for norm, projections in readers:
        for projection in projections:
            projection.weight.data = _reading(projection.weight, norm.weight, rotation)
        norm.weight.data.fill_(1.0)
    for projection in (attention.o_proj, mlp.down_proj):
        projection.weight.data = (rotation.T @ projection.weight.double()).float()


def _reading(weight: torch.Tensor, gain: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    return ((weight.double() * gain.double()) @ rotation).float()
