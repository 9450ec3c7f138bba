"""Model directories with random weights: what they answer means nothing, what they cost does."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from engine_gpu_measures.llama_8b import write_byte_tokenizer
from safetensors.torch import save_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a model; attention heads are of 64 numbers each."""

    hidden: int
    inner: int
    num_layers: int
    vocab: int
    context: int


BERT_BASE = Shape(hidden=768, inner=3072, num_layers=12, vocab=30522, context=512)
TINY_BERT = Shape(hidden=128, inner=512, num_layers=2, vocab=1000, context=512)
TINY_LLAMA = Shape(hidden=256, inner=688, num_layers=4, vocab=1000, context=2048)
_HEAD = 64


def write_bert(path: Path, shape: Shape) -> Path:
    """Write an encoder and return its directory."""
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": shape.context,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_attention_heads": shape.hidden // _HEAD,
        "num_hidden_layers": shape.num_layers,
        "vocab_size": shape.vocab,
    }
    tensors = _norm("embeddings.LayerNorm", shape.hidden)
    for table, rows in (
        ("word", shape.vocab),
        ("position", shape.context),
        ("token_type", 2),
    ):
        tensors[f"embeddings.{table}_embeddings.weight"] = _random(rows, shape.hidden)
    for layer in range(shape.num_layers):
        prefix = f"encoder.layer.{layer}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value"):
            tensors |= _linear(f"{prefix}.{part}", shape.hidden, shape.hidden)
        tensors |= _linear(f"{prefix}.attention.output.dense", shape.hidden, shape.hidden)
        tensors |= _norm(f"{prefix}.attention.output.LayerNorm", shape.hidden)
        tensors |= _linear(f"{prefix}.intermediate.dense", shape.inner, shape.hidden)
        tensors |= _linear(f"{prefix}.output.dense", shape.hidden, shape.inner)
        tensors |= _norm(f"{prefix}.output.LayerNorm", shape.hidden)
    return _write(path, config, tensors)


def write_llama(path: Path, shape: Shape) -> Path:
    """Write a small decoder and return its directory."""
    heads = shape.hidden // _HEAD
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": _HEAD,
        "num_hidden_layers": shape.num_layers,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
    }
    tensors = {
        "model.embed_tokens.weight": _random(shape.vocab, shape.hidden),
        "model.norm.weight": torch.ones(shape.hidden),
    }
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}"
        for part in "qkvo":
            tensors[f"{prefix}.self_attn.{part}_proj.weight"] = _random(shape.hidden, shape.hidden)
        for part in ("gate", "up"):
            tensors[f"{prefix}.mlp.{part}_proj.weight"] = _random(shape.inner, shape.hidden)
        tensors[f"{prefix}.mlp.down_proj.weight"] = _random(shape.hidden, shape.inner)
        for part in ("input", "post_attention"):
            tensors[f"{prefix}.{part}_layernorm.weight"] = torch.ones(shape.hidden)
    return _write(path, config, tensors)


def _write(path: Path, config: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    write_byte_tokenizer(path)
    save_file(tensors, path / "model.safetensors")
    return path


def _linear(name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": _random(rows, columns), f"{name}.bias": torch.zeros(rows)}


def _norm(name: str, size: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.ones(size), f"{name}.bias": torch.zeros(size)}


def _random(rows: int, columns: int) -> torch.Tensor:
    return torch.empty(rows, columns).normal_(std=0.02)
