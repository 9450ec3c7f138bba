"""Small models of every family the engine runs: random weights, a real tokenizer.

Weights are drawn wide (0.2 instead of the usual 0.02) so that the most probable token leads by far
and greedy answers do not hang on rounding.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.modeling_layers import MtpModel

CONTEXT = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_CHAT_ROLES = dict(
    zip(("unk_token", "bos_token", "eos_token"), _SPECIAL, strict=True),
    pad_token=_SPECIAL[2],
)
_BERT_ROLES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_VOCAB_SIZE = 512
_QUIET = 0.07
_CORPUS = [
    "What is the capital of France? The capital of France is Paris.",
    "A man is eating food. A man eats something. The weather is lovely today.",
    "The film was a wonderful surprise, the book a dull and terrible disappointment.",
    '{"name": "Ada", "age": 36, "languages": ["English", "French"], "active": true}',
    "def add(left, right):\n    return left + right\n",
    "Grüße aus Köln, größer als 10 €. 你好,世界。今天天气很好。 🙂 👩\u200d👩\u200d👧",
    "once upon a time there was a small model that answered every question it was asked",
]


def write_llama(path: Path, **changes: Any) -> Path:
    """Grouped-query attention: 4 heads over 2 key-value heads."""
    config = LlamaConfig(**_rotary(**{"num_key_value_heads": 2, **changes}))
    return _write_decoder(path, LlamaForCausalLM, config)


def write_qwen2(path: Path) -> Path:
    """Biases on query, key and value; tied embeddings."""
    config = Qwen2Config(**_rotary(num_key_value_heads=2, tie_word_embeddings=True))
    return _write_decoder(path, Qwen2ForCausalLM, config)


def write_qwen3(path: Path) -> Path:
    """Norms on query and key, a head wider than hidden size / heads."""
    config = Qwen3Config(**_rotary(num_key_value_heads=2, head_dim=32))
    return _write_decoder(path, Qwen3ForCausalLM, config)


def write_gpt2(path: Path) -> Path:
    """Learned positions, layer norm, fused transposed projections."""
    config = GPT2Config(
        vocab_size=_VOCAB_SIZE,
        n_positions=CONTEXT,
        n_embd=64,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    return _write_decoder(path, GPT2LMHeadModel, config)


def write_qwen3_moe(path: Path, **changes: Any) -> Path:
    """A dense layer, then one with 8 experts, two per token."""
    options = {
        "head_dim": 32,
        "num_key_value_heads": 2,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
        "mlp_only_layers": [0],
        **changes,
    }
    return _write_decoder(path, Qwen3MoeForCausalLM, Qwen3MoeConfig(**_rotary(**options)))


def write_mistral(path: Path) -> Path:
    """Llama's layers under another name, with a head of its own size."""
    return _write_decoder(
        path, MistralForCausalLM, MistralConfig(**_rotary(num_key_value_heads=2, head_dim=24))
    )


def write_mixtral(path: Path) -> Path:
    """Experts in both layers, under Mixtral's own names."""
    config = MixtralConfig(**_rotary(num_key_value_heads=2, num_local_experts=4))
    return _write_decoder(path, MixtralForCausalLM, config)


def write_deepseek_v2(path: Path, **changes: Any) -> Path:
    """Latent attention with plain queries; the best experts wherever they are (V2-Lite)."""
    options = _latent(**{"q_lora_rank": None, "n_shared_experts": 2, **changes})
    return _write_decoder(path, DeepseekV2ForCausalLM, DeepseekV2Config(**options))


def write_deepseek_v3(path: Path, **changes: Any) -> Path:
    """Latent attention with compressed queries, YaRN, experts in groups, a gate with a bias."""
    options = {
        "q_lora_rank": 24,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 0.8,
            "original_max_position_embeddings": CONTEXT // 4,
        },
        **changes,
    }
    return _write_decoder(path, DeepseekV3ForCausalLM, DeepseekV3Config(**_latent(**options)))


def add_mtp_head(path: Path) -> MtpModel:
    """Give a DeepSeek-V3 directory a multi-token prediction head; return transformers' own.

    As in released weights the head is the layer after the last, with its own copies of the
    embedding and of the output head.
    """
    torch.manual_seed(1)
    target = DeepseekV3ForCausalLM.from_pretrained(path)
    head = MtpModel(target, 1)
    for module in head.modules():
        target._init_weights(module)
    _random_vectors(head.layers)
    file = path / "model.safetensors"
    tensors = load_file(file)
    prefix = f"model.layers.{target.config.num_hidden_layers}"
    tensors[f"{prefix}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors[f"{prefix}.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    for name, value in head.layers[0].state_dict().items():
        for hub_name, hub_value in _hub_tensors(name, value):
            tensors[f"{prefix}.{hub_name}"] = hub_value.clone()
    save_file(tensors, file, metadata={"format": "pt"})
    return head


def make_mtp_head_right(path: Path) -> None:
    """Change a directory with a head so that about four of five guesses are right.

    What follows a token hangs mostly on the token itself, in the target and in the head: layers
    add little, each token's output row is the embedding of the one before it, and the head passes
    the next token's embedding on.
    """
    file = path / "model.safetensors"
    tensors = load_file(file)
    embedding = tensors["model.embed_tokens.weight"]
    vocab, hidden = embedding.shape
    successors = torch.randperm(vocab, generator=torch.Generator().manual_seed(3))
    tensors["lm_head.weight"] = torch.empty_like(embedding)
    tensors["lm_head.weight"][successors] = embedding
    for name, value in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            value *= _QUIET
        elif name.endswith("eh_proj.weight"):
            value[:, :hidden] = torch.eye(hidden)
            value[:, hidden:] *= _QUIET
    save_file(tensors, file, metadata={"format": "pt"})


def write_bert(path: Path, *, labels: tuple[str, ...] = ()) -> Path:
    """An embedder, or with `labels` a sequence classifier."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=_VOCAB_SIZE,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.2,
        pad_token_id=0,
    )
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    model: Any = BertForSequenceClassification(config) if labels else BertModel(config)
    _random_vectors(model)
    model.save_pretrained(path)
    _word_piece_tokenizer().save_pretrained(path)
    return path


def write_mpnet(path: Path) -> Path:
    """An embedder that runs in transformers' own code: its attention looks at distances."""
    torch.manual_seed(0)
    config = MPNetConfig(
        vocab_size=_VOCAB_SIZE,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    MPNetModel(config).save_pretrained(path)
    _word_piece_tokenizer().save_pretrained(path)
    return path


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB_SIZE,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 2, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **_CHAT_ROLES,
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
    )


def _rotary(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": _VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
        **changes,
    }


def _latent(**changes: Any) -> dict[str, Any]:
    return {
        **_rotary(num_key_value_heads=4),
        "kv_lora_rank": 24,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 20,
        "v_head_dim": 12,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 40,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.7,
        **changes,
    }


def _hub_tensors(name: str, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Take transformers' fused experts apart and name everything as hub checkpoints do."""
    name = name.removeprefix("mtp_block.").replace("post_norm.", "shared_head.norm.")
    if name.endswith("experts.gate_up_proj"):
        for expert, both in enumerate(value):
            for part, half in zip(("gate_proj", "up_proj"), both.chunk(2), strict=True):
                yield name.replace("gate_up_proj", f"{expert}.{part}.weight"), half
    elif name.endswith("experts.down_proj"):
        for expert, down in enumerate(value):
            yield name.replace("down_proj", f"{expert}.down_proj.weight"), down
    else:
        yield name, value


def _write_decoder(path: Path, cls: Any, config: Any) -> Path:
    torch.manual_seed(0)
    model = cls(config)
    _random_vectors(model)
    model.save_pretrained(path)
    byte_level_tokenizer().save_pretrained(path)
    return path


def _random_vectors(model: torch.nn.Module) -> None:
    """Move biases and norms away from 0 and 1, where a forgotten one would not be noticed."""
    gate_biases = (b for name, b in model.named_buffers() if name.endswith("correction_bias"))
    with torch.no_grad():
        for vector in (*model.parameters(), *gate_biases):
            if vector.dim() == 1:
                vector.add_(torch.randn_like(vector) * 0.1)


def _word_piece_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token=_BERT_ROLES["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=_VOCAB_SIZE, special_tokens=list(_BERT_ROLES.values()), show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS * 2, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **_BERT_ROLES,
        model_max_length=128,
    )


def said_to_be_gpt_neox(source: Path, path: Path) -> Path:
    """Copy a model and have its config name a family that is none of the torch engine's."""
    shutil.copytree(source, path)
    config = json.loads((path / "config.json").read_text())
    config.update(architectures=["GPTNeoXForCausalLM"], model_type="gpt_neox")
    (path / "config.json").write_text(json.dumps(config))
    return path
