"""The weights that are loaded: a real model's, and random ones of a decoder's shapes."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from serving_measures.platform import CHAT_MODEL, Run

from deepseek.weights.acquisition import acquire
from deepseek.weights.cache import ModelCache
from deepseek.weights.catalogue import CATALOGUE
from deepseek.weights.progress import SilentProgress
from deepseek.weights.store.chunk_store import ChunkStore
from deepseek.weights.store.importing import import_weights

_HIDDEN, _INNER, _VOCABULARY = 2048, 5632, 32_000  # TinyLlama's; keys and values in full
_LAYERS = 20


def real_model() -> Path:
    """Return the real model's safetensors file."""
    path = acquire(CATALOGUE[CHAT_MODEL], cache=ModelCache.default(), progress=SilentProgress())
    return path / "model.safetensors"


def synthetic_model(run: Run, *, name: str = "synthetic") -> Path:
    """Write random bfloat16 weights of about 2 GB; returns their file."""
    directory = run.work / name
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    save_file(synthetic_tensors(layers=run.count(_LAYERS, 2)), directory / "model.safetensors")
    return directory / "model.safetensors"


def synthetic_tensors(*, layers: int) -> dict[str, torch.Tensor]:
    """Return random tensors of a decoder's shapes."""
    shapes = {"model.embed_tokens.weight": (_VOCABULARY, _HIDDEN), "model.norm.weight": (_HIDDEN,)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (_HIDDEN,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (_HIDDEN,)
        for part in "qkvo":
            shapes[f"{prefix}.self_attn.{part}_proj.weight"] = (_HIDDEN, _HIDDEN)
        for part in ("gate", "up"):
            shapes[f"{prefix}.mlp.{part}_proj.weight"] = (_INNER, _HIDDEN)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (_HIDDEN, _INNER)
    shapes["lm_head.weight"] = (_VOCABULARY, _HIDDEN)
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.empty(shape, dtype=torch.bfloat16).uniform_(generator=generator)
        for name, shape in shapes.items()
    }


def into_store(weights: Path, store: ChunkStore, place: Path) -> None:
    """Import a safetensors file; `place` is a model directory of the store then."""
    place.mkdir(parents=True)
    (place / "config.json").write_bytes((weights.parent / "config.json").read_bytes())
    progress = SilentProgress()
    with store.importing(needed_bytes=0, purpose="the benchmark", progress=progress) as writer:
        import_weights(
            (weights,),
            directory=place,
            place=place,
            model=place.name,
            writer=writer,
            progress=progress,
        )
