"""The messages between the platform's process and a worker: msgpack over a Unix socket.

Each frame is a 4-byte big-endian length and one tagged message. After every engine step the worker
sends one frame that carries all new tokens of all requests.
"""

import struct
from typing import Any, Literal

import msgspec

from deepseek.core.decisions import Decision
from deepseek.core.load import LoadSnapshot
from deepseek.core.qos import QoS
from deepseek.core.requests import EncodeRequest, GenerateRequest, Task, TokenLogprobs
from deepseek.core.residency import Residency

FRAME_HEADER = struct.Struct(">I")
MAX_FRAME_BYTES = 1 << 30
REFUSED_STATUS = 2
"""Exit status of a worker that cannot work as it is set up: the next one could not either."""
STAND_BY = "--stand-by"
"""Argument of a worker whose spec may come much later, or never."""


class AdapterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One LoRA adapter for a worker to load."""

    name: str
    path: str


class KeySpec(msgspec.Struct, frozen=True, kw_only=True):
    """Where the worker finds the key of a sealed model; never the key itself."""

    source: str
    """A name of `weights.store.keys.registry`."""
    argument: Any
    """What the settings give that source."""


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One model for a worker to load."""

    name: str
    path: str
    task: Task
    dtype: str = "auto"
    max_model_len: int | None = None
    qos: QoS = QoS()
    quantization: str | None = None
    speculation: str | None = None
    engine: Literal["auto", "torch", "vllm"] = "auto"
    adapters: list[AdapterSpec] = []
    """Loaded with the model; one that cannot be is reported, the others serve."""
    max_adapters: int = 8
    max_adapter_rank: int = 64
    keep_alive_s: float | None = None
    """Leaves memory when it has been idle for so long; None: only where others need the room."""
    min_resident: int = 1
    """0: may be absent, also at the start; a request loads it."""
    verify: Literal["once", "always", "never"] = "once"
    """When chunks of a store are compared with their digests (`weights.store.reader.Verify`)."""
    key: KeySpec | None = None
    """Of sealed weights."""


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All a worker process needs to start; passed as msgpack on its standard input.

    Not as JSON, which has no infinity: a model without deadlines has infinite ones.
    """

    pool: str
    socket_path: str
    device: str
    models: list[ModelSpec]
    cpus: str | None = None
    num_threads: int | None = None
    kv_cache_bytes: int | None = None
    memory_utilization: float = 0.9
    host_weights_bytes: int = 0
    """Pinned memory beside a GPU for copies of weights, from which models that have left it come
    back; 0: they leave for good."""
    max_step_tokens: int | None = None
    max_running: int | None = None
    weights_bytes: int | None = None
    """Bound of all loaded models' weights together, as they are kept for computing."""
    prepared_dir: str | None = None
    """Directory of prepared weights (`deepseek.weights.prepared`); None: there are none."""
    prepared_bytes: int = 0
    """What its files may take together; 0: they are neither used nor written."""
    preloading: str = "foreseen"
    """Which models are loaded ahead of requests, and which make room (`scheduling.preloading`)."""
    preload_bytes_per_s: int = 0
    """Rate limit of loads that nobody waits for; 0: there are none."""
    step_policy: str = "fair-share"
    max_step_s: float = 0.01
    """Bound of steps beside a model with a reservation."""
    step_record: str | None = None
    """File to append one JSON line per engine step to."""
    decision_record: str | None = None
    """File for what batching policies see and decide (`deepseek.scheduling.decision_log`)."""
    decision_record_bytes: int = 256 * 1024**2
    """Size at which a decision record ends."""
    snapshot_interval_s: float = 0.5
    log_level: str = "info"
    python: str | None = None
    """Interpreter that the worker runs under; None: the platform's own."""


# platform to worker


class Generate(msgspec.Struct, tag="generate", frozen=True):
    """Start these generations."""

    requests: list[GenerateRequest]


class Encode(msgspec.Struct, tag="encode", frozen=True):
    """Encode these sequences."""

    request: EncodeRequest


class Abort(msgspec.Struct, tag="abort", frozen=True):
    """Forget these requests; nothing more is sent for them."""

    ids: list[int]


class LoadAdapter(msgspec.Struct, tag="load_adapter", frozen=True, kw_only=True):
    """Load a LoRA adapter, in place of one of the same name; answered by its id."""

    id: int
    model: str
    name: str
    path: str


class DropAdapter(msgspec.Struct, tag="drop_adapter", frozen=True, kw_only=True):
    """Forget a LoRA adapter once the last request that uses it has ended; answered by its id."""

    id: int
    model: str
    name: str


class Configure(msgspec.Struct, tag="configure", frozen=True):
    """Take new QoS for these models from the next step on; answered by its id."""

    id: int
    qos: dict[str, QoS]


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """Exit after what runs has finished."""


# worker to platform


class AdapterInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an adapter that was to be loaded with its model."""

    name: str
    error: str | None = None
    """Why it cannot be used."""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker found when it loaded a model."""

    name: str
    max_model_len: int
    vocab_size: int
    width: int = 0
    """Length of an embedding, or number of labels."""
    dtype: str = ""
    weights_bytes: int = 0
    """Memory that its weights take, as they are kept for computing."""
    load_s: float = 0.0
    adapters: list[AdapterInfo] = []
    error: str | None = None
    """Set when the model could not be loaded at the start; the others serve on."""
    error_code: str | None = None
    residency: Residency = Residency.READY
    """All else is unknown until it has been loaded for the first time."""


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """Every model that is to be there at the start has been loaded, or has said why not."""

    pid: int
    models: list[ModelInfo]


class ModelChanged(msgspec.Struct, tag="model_changed", frozen=True):
    """A model has been loaded, or has left memory, or its load has begun or failed."""

    model: ModelInfo


class TokenDelta(msgspec.Struct, array_like=True, frozen=True):
    """New tokens of one request."""

    id: int
    token_ids: list[int]
    finish_reason: str | None = None
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache."""
    logprobs: list[TokenLogprobs] | None = None


class StepOutput(msgspec.Struct, tag="step", frozen=True):
    """All that one step produced."""

    deltas: list[TokenDelta]


class Encoded(msgspec.Struct, tag="encoded", frozen=True):
    """Rows of float32, row-major: `num_rows` x `width`."""

    id: int
    num_rows: int
    width: int
    data: bytes


class Done(msgspec.Struct, tag="done", frozen=True):
    """A `LoadAdapter`, `DropAdapter` or `Configure` has been carried out; else it is `Failed`."""

    id: int


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """One request ended with an error of `core.errors`, by its wire code."""

    id: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    """When to send the request again, where that may help."""


class Load(msgspec.Struct, tag="load", frozen=True):
    """The periodic load report, and what was decided since the last one."""

    snapshot: LoadSnapshot
    decisions: list[Decision] = []


Command = Generate | Encode | Abort | LoadAdapter | DropAdapter | Configure | Stop
Event = Ready | ModelChanged | StepOutput | Encoded | Done | Failed | Load

_encoder = msgspec.msgpack.Encoder()
command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
event_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)
spec_decoder: msgspec.msgpack.Decoder[WorkerSpec] = msgspec.msgpack.Decoder(WorkerSpec)


def encode_spec(spec: WorkerSpec) -> bytes:
    """Return the bytes that a worker reads from its standard input."""
    return _encoder.encode(spec)


def frame(message: Any) -> bytes:
    """Return the message as one frame, ready to send."""
    body = _encoder.encode(message)
    return FRAME_HEADER.pack(len(body)) + body
