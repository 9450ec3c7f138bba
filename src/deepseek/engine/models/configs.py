"""What `config.json` says of a network, typed per family.

Keys that a file leaves out mean what they mean to transformers, whose defaults these are. Tensors
are checked against the sizes when they are read (`deepseek.engine.models.checkpoint`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec.structs import force_setattr

from deepseek.core.errors import ModelSourceError, UnsupportedModel
from deepseek.engine.models.rotary import ROPE_TYPES, AnyRope, Rope
from deepseek.weights.json_files import read_object

Size = Annotated[int, msgspec.Meta(gt=0)]


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What every family has."""

    other_spellings: ClassVar[Mapping[str, str]] = {}
    """Keys that a file may use instead of a field's own name, and the fields."""

    architectures: list[str] | None = None
    model_type: str = ""
    vocab_size: Size
    quantization_config: dict[str, Any] | None = None

    @property
    def architecture(self) -> str:
        """The class that the weights were saved from."""
        return self.architectures[0] if self.architectures else "?"


class RotaryConfig(ModelConfig, frozen=True, kw_only=True):
    """A pre-norm decoder with rotary positions and gated MLPs."""

    default_theta: ClassVar[float] = 10000.0

    vocab_size: Size = 32000
    hidden_size: Size = 4096
    intermediate_size: Size = 11008
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    hidden_act: str = "silu"
    max_position_embeddings: Size = 2048
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope: AnyRope = Rope(rope_theta=default_theta)


class LlamaConfig(RotaryConfig, frozen=True, kw_only=True):
    """Llama, and what its relatives share."""

    num_key_value_heads: int | None = None
    """Resolved to the number of heads where the file has none, or null."""
    head_dim: int | None = None
    """Resolved to hidden size / heads."""

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:
            force_setattr(self, "num_key_value_heads", self.num_attention_heads)
        if self.head_dim is None:
            force_setattr(self, "head_dim", self.hidden_size // self.num_attention_heads)

    @property
    def attention_window(self) -> int | None:
        """The tokens that each one attends to; None: all before it."""
        return None


class MistralConfig(LlamaConfig, frozen=True, kw_only=True):
    """Mistral: a window by default."""

    intermediate_size: Size = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: Size = 131072
    sliding_window: int | None = 4096

    @property
    def attention_window(self) -> int | None:
        return self.sliding_window


class MixtralConfig(MistralConfig, frozen=True, kw_only=True):
    """Mistral with experts."""

    default_theta: ClassVar[float] = 1000000.0
    other_spellings: ClassVar[Mapping[str, str]] = {"num_local_experts": "num_experts"}

    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None
    num_experts: int = 8
    num_experts_per_tok: int = 2


class Qwen2Config(LlamaConfig, frozen=True, kw_only=True):
    """Qwen2: a window only where it is switched on."""

    vocab_size: Size = 151936
    intermediate_size: Size = 22016
    num_key_value_heads: int | None = 32
    max_position_embeddings: Size = 32768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096

    @property
    def attention_window(self) -> int | None:
        return self.sliding_window if self.use_sliding_window else None


class Qwen3Config(Qwen2Config, frozen=True, kw_only=True):
    """Qwen3: heads of a width of their own."""

    head_dim: int | None = 128


class Qwen3MoeConfig(Qwen2Config, frozen=True, kw_only=True):
    """Qwen3 with experts."""

    other_spellings: ClassVar[Mapping[str, str]] = {"num_local_experts": "num_experts"}

    hidden_size: Size = 2048
    intermediate_size: Size = 6144
    num_hidden_layers: Size = 24
    num_key_value_heads: int | None = 4
    decoder_sparse_step: Size = 1
    moe_intermediate_size: Size = 768
    num_experts: int = 128
    num_experts_per_tok: int = 8
    norm_topk_prob: bool = False
    mlp_only_layers: list[int] | None = None
    """Resolved to the empty list."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mlp_only_layers is None:
            force_setattr(self, "mlp_only_layers", [])


class DeepseekConfig(RotaryConfig, frozen=True, kw_only=True):
    """What DeepSeek-V2 and V3 share: latent attention and grouped experts."""

    kv_lora_rank: Size = 512
    q_lora_rank: int | None = 1536
    qk_nope_head_dim: Size = 128
    qk_rope_head_dim: Size = 64
    v_head_dim: Size = 128
    moe_layer_freq: int = 1
    n_group: int | None = None
    topk_group: int | None = None
    num_experts_per_tok: int | None = None


class DeepseekV2Config(DeepseekConfig, frozen=True, kw_only=True):
    """DeepSeek-V2."""

    other_spellings: ClassVar[Mapping[str, str]] = {"num_experts": "n_routed_experts"}

    vocab_size: Size = 102400
    first_k_dense_replace: int = 0
    moe_intermediate_size: Size = 1407
    n_routed_experts: int = 64
    n_shared_experts: int = 2
    norm_topk_prob: bool | None = False
    routed_scaling_factor: float = 1.0
    scoring_func: str = "softmax"
    topk_method: str | None = "greedy"

    @property
    def rope_interleave(self) -> bool:
        """Whether the two elements that turn together lie side by side."""
        return True


class DeepseekV3Config(DeepseekConfig, frozen=True, kw_only=True):
    """DeepSeek-V3 and R1."""

    other_spellings: ClassVar[Mapping[str, str]] = {"num_local_experts": "n_routed_experts"}

    vocab_size: Size = 129280
    hidden_size: Size = 7168
    intermediate_size: Size = 18432
    num_hidden_layers: Size = 61
    num_attention_heads: Size = 128
    max_position_embeddings: Size = 4096
    first_k_dense_replace: int = 3
    moe_intermediate_size: Size = 2048
    n_group: int | None = 8
    n_routed_experts: int = 256
    n_shared_experts: int = 1
    norm_topk_prob: bool | None = True
    num_experts_per_tok: int | None = 8
    rope_interleave: bool = True
    routed_scaling_factor: float = 2.5
    scoring_func: str = "sigmoid"
    topk_group: int | None = 4
    topk_method: str = "noaux_tc"


class GPT2Config(ModelConfig, frozen=True, kw_only=True):
    """GPT-2."""

    other_spellings: ClassVar[Mapping[str, str]] = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: Size = 50257
    n_positions: Size = 1024
    n_embd: Size = 768
    n_layer: Size = 12
    n_head: Size = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True


class EncoderConfig(ModelConfig, frozen=True, kw_only=True):
    """What BERT's relatives share."""

    vocab_size: Size = 30522
    hidden_size: Size = 768
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: Size = 512
    position_embedding_type: str | None = None
    pad_token_id: int | None = 0
    id2label: dict[str, Any] | None = None
    num_labels: int = 2
    """Resolved to the number of names in `id2label` where there are any."""

    def __post_init__(self) -> None:
        if self.id2label:
            force_setattr(self, "num_labels", len(self.id2label))


class BertConfig(EncoderConfig, frozen=True, kw_only=True):
    """BERT."""

    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    @property
    def embedding_size(self) -> int:
        """Width of the summed embeddings."""
        return self.hidden_size


class RobertaConfig(BertConfig, frozen=True, kw_only=True):
    """RoBERTa; XLM-RoBERTa and CamemBERT differ in the default vocabulary."""

    vocab_size: Size = 50265
    pad_token_id: int | None = 1


class XLMRobertaConfig(RobertaConfig, frozen=True, kw_only=True):
    """XLM-RoBERTa and CamemBERT."""

    vocab_size: Size = 30522


class DistilBertConfig(EncoderConfig, frozen=True, kw_only=True):
    """DistilBERT: no token types, and a norm whose epsilon is fixed."""

    other_spellings: ClassVar[Mapping[str, str]] = {
        "activation": "hidden_act",
        "dim": "hidden_size",
        "hidden_dim": "intermediate_size",
        "n_heads": "num_attention_heads",
        "n_layers": "num_hidden_layers",
    }

    num_hidden_layers: Size = 6

    @property
    def type_vocab_size(self) -> int:
        """The number of token types."""
        return 0

    @property
    def layer_norm_eps(self) -> float:
        """What is added to a variance."""
        return 1e-12

    @property
    def embedding_size(self) -> int:
        """Width of the summed embeddings."""
        return self.hidden_size


class ElectraConfig(EncoderConfig, frozen=True, kw_only=True):
    """ELECTRA: embeddings of a width of their own."""

    embedding_size: Size = 128
    hidden_size: Size = 256
    num_attention_heads: Size = 4
    intermediate_size: Size = 1024
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12


class AlbertConfig(ElectraConfig, frozen=True, kw_only=True):
    """ALBERT: layers that share their tensors."""

    vocab_size: Size = 30000
    hidden_size: Size = 4096
    num_attention_heads: Size = 64
    intermediate_size: Size = 16384
    hidden_act: str = "gelu_new"
    num_hidden_groups: Size = 1
    inner_group_num: Size = 1


DECODER_CONFIGS: dict[str, type[ModelConfig]] = {
    "LlamaForCausalLM": LlamaConfig,
    "MistralForCausalLM": MistralConfig,
    "Qwen2ForCausalLM": Qwen2Config,
    "Qwen3ForCausalLM": Qwen3Config,
    "GPT2LMHeadModel": GPT2Config,
    "Qwen3MoeForCausalLM": Qwen3MoeConfig,
    "MixtralForCausalLM": MixtralConfig,
    "DeepseekV2ForCausalLM": DeepseekV2Config,
    "DeepseekV3ForCausalLM": DeepseekV3Config,
}
"""By architecture."""
ENCODER_CONFIGS: dict[str, type[ModelConfig]] = {
    "bert": BertConfig,
    "roberta": RobertaConfig,
    "xlm-roberta": XLMRobertaConfig,
    "camembert": XLMRobertaConfig,
    "distilbert": DistilBertConfig,
    "electra": ElectraConfig,
    "albert": AlbertConfig,
}
"""By model type: one network under many heads."""


def read_config(directory: Path) -> ModelConfig:
    """Read a model directory's `config.json` as its family's class.

    Raises `UnsupportedModel` for a family, or a rope type, that is not known, and
    `ModelSourceError` where the file is missing or a value is of the wrong type.
    """
    file = directory / "config.json"
    values = read_object(file)
    cls = _family(directory, values)
    for spelling, field in cls.other_spellings.items():
        if spelling in values:
            values[field] = values[spelling]
    try:
        config = msgspec.convert(values, cls)
        if isinstance(config, RotaryConfig):
            rope = msgspec.convert(_rope_values(directory, values, config), AnyRope)
            config = msgspec.structs.replace(config, rope=rope)
    except msgspec.ValidationError as error:
        raise ModelSourceError(f"{file} cannot be used: {error}") from error
    return config


def _family(directory: Path, values: Mapping[str, Any]) -> type[ModelConfig]:
    listed, model_type = values.get("architectures"), str(values.get("model_type"))
    architecture = str(listed[0]) if isinstance(listed, list) and listed else "(none)"
    cls = DECODER_CONFIGS.get(architecture) or ENCODER_CONFIGS.get(model_type)
    if cls is None:
        known = ", ".join((*DECODER_CONFIGS, *ENCODER_CONFIGS))
        raise UnsupportedModel(
            f"{directory}: architecture {architecture!r} (model type {model_type!r}) is not "
            f"supported; known: {known}"
        )
    return cls


def _rope_values(
    directory: Path, values: Mapping[str, Any], config: RotaryConfig
) -> dict[str, Any]:
    """Gather what files spread over the top level, `rope_scaling` and `rope_parameters`."""
    key = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    given = values.get(key) or {}
    if not isinstance(given, dict):
        raise ModelSourceError(f"{directory / 'config.json'}: {key} must be an object")
    rope = dict(given)
    kind = rope.setdefault("rope_type", rope.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise UnsupportedModel(f"{directory}: rope type {kind!r} is not supported")
    rope.setdefault("rope_theta", values.get("rope_theta", config.default_theta))
    part = rope.get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1.0
    if kind != "default" and part != 1.0:
        raise UnsupportedModel(f"{directory}: rope type {kind!r} on a part of each head")
    trained = values.get("original_max_position_embeddings")
    if trained is not None:
        rope["original_max_position_embeddings"] = trained
    rope.setdefault("original_max_position_embeddings", config.max_position_embeddings)
    return {**rope, "max_position_embeddings": config.max_position_embeddings}
