"""Settings of one served model (section `models` of the file)."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from deepseek.core.qos import LateRequests, Priority, QoS
from deepseek.core.settings import (
    DurationSeconds,
    OptionalDurationSeconds,
    PartOfWhole,
    Settings,
)
from deepseek.core.wire import KeySpec
from deepseek.serving.precision_settings import PrecisionSettings

ModelName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,95}$",
        description="letters, digits and . _ - : /, beginning with a letter or digit, at most 96",
    ),
]


LIVE_SETTINGS = ("share", "qos", "precision")
"""What may change while a model serves (`deepseek apply`); everything else needs a new start."""


class DeadlineSettings(Settings):
    """How soon a model's answers are due; requests without a deadline are never late."""

    ttft: OptionalDurationSeconds = Field(default=None, gt=0)
    """Time from a request's arrival to its first token, or to an encoder's whole answer; default:
    none."""
    itl: OptionalDurationSeconds = Field(default=None, gt=0)
    """Mean time between two tokens of an answer, from the first on; default: none."""


class QosSettings(Settings):
    """What a model is promised of its device, and how its requests are batched.

    `deepseek apply` changes these while the model serves.
    """

    priority: Literal["critical", "high", "normal", "low"] = "normal"
    """`critical`: inside its reservation, ahead of every other model at the next step. Else the
    part in what no reservation uses: `high` 4 times, `low` a quarter of `normal` (default)."""
    reserved_share: PartOfWhole = Field(default=0.0, ge=0, le=1)
    """Part of the device's time that the model gets whenever it has work, as `0.9` or `90%`; the
    others use it while the model has none. Default 0."""
    policy: str = QoS().policy
    """What decides on batches: `slack` (default), `greedy`, `fixed`, `aimd`, `step-up`, or a name
    from the entry-point group `deepseek.batching_policies`."""
    min_batch_size: int = Field(default=1, ge=1, le=1024)
    """Sequences a step should hold at least: it waits for them, up to `max_wait_time`, while no
    deadline suffers; always, where `strict` is set. Default 1."""
    max_batch_size: int | None = Field(default=None, ge=1, le=1024)
    """Sequences a step holds at most; default: the pool's `max_running`."""
    max_wait_time: DurationSeconds = Field(default=0.0, ge=0)
    """Longest time that work is held back to be batched better; default 0."""
    strict: bool = False
    """Wait for `min_batch_size` until `max_wait_time` whatever the deadlines say; default false."""
    deadline: DeadlineSettings = Field(default_factory=DeadlineSettings)
    """How soon answers are due; default: no deadlines."""
    late: Literal["relegate", "refuse"] = "relegate"
    """What becomes of a waiting request that can no longer meet its deadline: `relegate` (default)
    serves it after those that can, `refuse` answers 503 with Retry-After."""


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
    quantization: Literal["int8", "nested"] | None = None
    """`int8`: weights in INT8 with one scale per output channel, activations quantised row by row
    as they come. `nested`: weights of a language model in INT8 and INT4 at once, in one copy, each
    request computed in one of them. Both on CPUs. Default: as `dtype` says."""
    precision: PrecisionSettings | None = None
    """With `quantization: nested`, which precision requests get; default: INT8, or what they
    name."""
    speculation: Literal["prompt-lookup", "mtp"] | None = None
    """Guess tokens and verify them in one step, where that has been paying; exact. `prompt-lookup`:
    from the text so far; `mtp`: by the weights' own multi-token prediction head (DeepSeek-V3, on a
    CPU). Default: off."""
    max_model_len: int | None = Field(default=None, ge=8)
    """Tokens of prompt and answer together; default: the model's own limit."""
    share: float = Field(default=1.0, gt=0, le=1000)
    """Weight of the model in the device time that nobody has reserved, and in the pool's KV-cache
    memory, beside its neighbours'; default 1."""
    min_resident: int = Field(default=1, ge=0, le=1)
    """1 (default): the model is loaded before the pool serves, and stays. 0: it may be absent, and
    a request loads it, and waits for that."""
    keep_alive: OptionalDurationSeconds = Field(default=None, gt=0)
    """Time without a request after which a model with `min_resident: 0` leaves memory, weights and
    attention state; default: it stays until another one needs the room."""
    verify: Literal["once", "always", "never"] = "once"
    """When weights in the chunk store are compared with their digests: `once` (default; the first
    time that the worker reads them), `always` (each time), or `never` (what the disk returns is
    believed). Without effect on weights outside the store, which have no digests."""
    key: dict[str, Any] | None = None
    """Where the worker finds the key of sealed weights: one of `file: PATH` (relative to the
    deployment file), `env: NAME`, `command: [PROGRAM, ...]`, or a name from the entry-point group
    `deepseek.key_sources` and what it needs. Weights that are not sealed are refused then.
    Default: none."""
    qos: QosSettings = Field(default_factory=QosSettings)
    """Promises and batching; default: none, batches by deadline slack."""
    decisions_kept: int = Field(default=256, ge=1, le=65536)
    """Decisions about the model that the platform keeps for `deepseek why`; default 256."""
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

    def to_key(self) -> KeySpec | None:
        """Return where the worker finds the key; `key_faults` has found one place."""
        if self.key is None:
            return None
        ((source, argument),) = self.key.items()
        return KeySpec(source=source, argument=argument)

    def to_qos(self) -> QoS:
        """Return what policies read."""
        qos = self.qos
        return QoS(
            priority=Priority(qos.priority),
            reserved_share=qos.reserved_share,
            weight=self.share,
            policy=qos.policy,
            min_batch_size=qos.min_batch_size,
            max_batch_size=qos.max_batch_size,
            max_wait_s=qos.max_wait_time,
            strict=qos.strict,
            ttft_s=math.inf if qos.deadline.ttft is None else qos.deadline.ttft,
            itl_s=math.inf if qos.deadline.itl is None else qos.deadline.itl,
            late=LateRequests(qos.late),
        )
