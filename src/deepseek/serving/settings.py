"""Settings of one served model (section `models` of the file)."""

from typing import Annotated, Literal

from pydantic import Field

from deepseek.core.settings import DurationSeconds, Settings

ModelName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,95}$",
        description="letters, digits and . _ - : /, beginning with a letter or digit, at most 96",
    ),
]


class ModelSettings(Settings):
    """One deployment: a model under a name, on a pool."""

    source: str = Field(min_length=1)
    """A name of the catalogue (`deepseek models list`) or the path of a Hugging Face model
    directory, relative to the deployment file."""
    pool: str = "default"
    """The device pool that runs the model; `default` exists without being declared."""
    engine: Literal["auto", "torch", "vllm"] = "auto"
    """What runs the model: `torch` (the platform's own engine), `vllm` (language models only, where
    the pool's environment has it), or `auto` (default): `torch` for every architecture that it
    knows, else `vllm`."""
    task: Literal["auto", "generate", "embed", "classify"] = "auto"
    """What the model does; `auto` (default) reads it from the model's config."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; `auto` (default): bfloat16 where the device computes in it,
    else float32."""
    quantization: Literal["int8"] | None = None
    """`int8`: weights of language models in INT8 with one scale per output channel, activations
    quantised row by row as they come; default: as `dtype` says."""
    speculation: Literal["prompt-lookup", "mtp"] | None = None
    """Guess tokens and verify them in one step, where that has been paying; exact. `prompt-lookup`:
    from the text so far; `mtp`: by the weights' own multi-token prediction head (DeepSeek-V3, on a
    CPU). Default: off."""
    max_model_len: int | None = Field(default=None, ge=8)
    """Tokens of prompt and answer together; default: the model's own limit."""
    share: float = Field(default=1.0, gt=0, le=1000)
    """Weight of the model's device time and KV-cache memory beside its neighbours'; default 1."""
    max_queue: int = Field(default=1024, ge=1)
    """Requests held (waiting and running); one more is refused with 429 and Retry-After.
    Default 1024."""
    request_timeout_s: DurationSeconds = Field(default=600.0, gt=0)
    """Seconds a request may take in all, then 504; default 600."""
    default_max_tokens: int | None = Field(default=None, ge=1)
    """`max_tokens` of chat requests that name none; default: what is left of the context."""
    adapters: dict[ModelName, str] = Field(default_factory=dict)
    """LoRA adapters of the model: the name clients send as `model`, and the path of the directory
    that PEFT saved, relative to the deployment file. Default: none."""
    adapter_dirs: list[str] = Field(default_factory=list)
    """Directories, relative to the deployment file, below which adapters may be loaded and dropped
    over HTTP while the model serves; default: none, which turns that off."""
    max_adapters: int = Field(default=8, ge=1, le=64)
    """Adapters loaded at once; default 8. A step that holds a request with an adapter computes the
    ranks of all that are loaded."""
    max_adapter_rank: int = Field(default=64, ge=1, le=1024)
    """Largest LoRA rank an adapter may have; default 64."""
