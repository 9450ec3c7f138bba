"""What a deployment gives to the edge: text in, text out.

The classes that do it are in `deepseek.serving.deployments`; the gateway sees these shapes only.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deepseek.core.precision import Precision
from deepseek.core.requests import SamplingParams, Task
from deepseek.core.residency import Residency
from deepseek.scheduling.precision.policy import PrecisionChoice, RequestKind
from deepseek.serving.kept_decisions import KeptDecision


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenText:
    """One token as the OpenAI API's `logprobs` shows it."""

    token: str
    """The token's own text; bytes that are not UTF-8 by themselves appear as U+FFFD."""
    token_bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionLogprobs:
    """The chosen token of one position and its most probable alternatives."""

    chosen: TokenText
    top: Sequence[TokenText]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """New text of one answer. The last delta of an answer carries `finish_reason`."""

    index: int
    """Which answer: prompt number times `n` plus the number of the answer."""
    text: str
    token_ids: Sequence[int] = ()
    logprobs: Sequence[PositionLogprobs] | None = None
    finish_reason: str | None = None
    """`stop` or `length`."""
    num_cached_tokens: int = 0
    """Prompt tokens taken from the prefix cache; in the first delta of an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """What a request that names none of these gets: the model's own generation_config.json."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """How to answer, beyond the sampling itself."""

    sampling: SamplingParams
    precision: Precision | None = None
    """What to compute in, as `GenerateDeployment.choose_precision` said."""
    n: int = 1
    """Answers per prompt; each draws from its own seed, derived from `sampling.seed`."""
    stop: Sequence[str] = ()
    """Strings that end an answer; they are cut from the text, also when split over tokens."""
    include_stop: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRows:
    """An encoder's answer."""

    rows: npt.NDArray[np.float32]
    """(inputs, width): embeddings, logits, or (inputs, 1) relevance scores."""
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentStatus:
    """One line of `/health/ready` and `/v1/models`."""

    name: str
    task: Task
    ready: bool
    reason: str = ""
    """Why it is not ready, in words for a person."""
    created: int = 0
    """Unix time at which the deployment was made."""
    max_model_len: int = 0
    num_in_flight: int = 0
    parent: str = ""
    """Of a LoRA adapter: the deployment that serves it."""
    residency: Residency | None = None
    """Where the model is; None while its pool has no worker that could have it. One on disk is
    ready as well: a request loads it.
    """


class GenerateDeployment(Protocol):
    """A served language model, or one of its LoRA adapters."""

    name: str
    """What requests call it."""
    deployment_name: str
    """The deployment that answers; differs from `name` for an adapter only."""
    default_max_tokens: int | None
    sampling_defaults: SamplingDefaults

    @property
    def max_model_len(self) -> int: ...

    @property
    def status(self) -> DeploymentStatus: ...

    @property
    def chat_template_source(self) -> str:
        """The chat template's text, from which the form of its tool calls is told; "" for none."""
        ...

    def render_chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        template_kwargs: dict[str, Any] | None = None,
    ) -> list[int]:
        """Return the token ids of a conversation under the model's chat template.

        Raises `UnsupportedParameter` where the model has no chat template, or `tools` are given to
        a template that does not know them; `InvalidRequest` with what the template complains of.
        """
        ...

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a plain prompt."""
        ...

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        ...

    def check_grammar(self, grammar: str, *, param: str) -> None:
        """Raise `InvalidGrammar` naming `param` where no constrained decoder can follow it."""
        ...

    def choose_precision(
        self, kind: RequestKind, *, named: Precision | None
    ) -> PrecisionChoice | None:
        """Return what to compute a request in that names a precision or none.

        None: the model has one. Raises `UnsupportedParameter` (param `precision` or `service_tier`)
        for what it does not have.
        """
        ...

    def generate(
        self, prompts: Sequence[list[int]], options: GenerateOptions
    ) -> AsyncGenerator[TextDelta, None]:
        """Yield the answers of all prompts as they grow, interleaved.

        Closing the iterator aborts what still runs and frees its slots. `sampling.max_tokens` must
        already be positive. Raises `ContextLengthExceeded`, `Overloaded`, `Draining`,
        `ModelUnavailable`, `WorkerCrashed`, `RequestTimeout`, `EngineFault`, of an adapter
        `AdapterNotFound`; the first four and the last before the first delta only, at the first
        `__anext__`.
        """
        ...


class EncodeDeployment(Protocol):
    """A served embedder or classifier."""

    name: str
    labels: Sequence[str]
    """Names of a classifier's classes, in the order of its logits; empty for an embedder."""
    multi_label: bool
    """Sigmoid per class instead of softmax over classes."""

    @property
    def max_model_len(self) -> int: ...

    @property
    def status(self) -> DeploymentStatus: ...

    def tokenize(self, text: str) -> list[int]: ...

    async def encode(
        self, inputs: Sequence[str | list[int]], *, truncate: bool = False
    ) -> EncodedRows:
        """Return embeddings (task embed) or logits (task classify), one row per input.

        An input longer than the model takes raises `ContextLengthExceeded`, or is cut where
        `truncate` is set. Other errors as in `GenerateDeployment.generate`.
        """
        ...

    async def score(
        self, query: str, documents: Sequence[str], *, truncate: bool = False
    ) -> EncodedRows:
        """Return the relevance of each document to the query, (documents, 1).

        An embedder answers cosine similarity; a cross-encoder (a classifier with one label) the
        sigmoid of its logit. Another classifier raises `WrongTask`.
        """
        ...


class Deployments(Protocol):
    """All that is served, by name."""

    def generator(self, name: str) -> GenerateDeployment:
        """Raise `ModelNotFound`, or `WrongTask` where the model is an encoder (param `model`)."""
        ...

    def encoder(self, name: str) -> EncodeDeployment:
        """Raise `ModelNotFound`, or `WrongTask` where the model generates (param `model`)."""
        ...

    def classifier(self, name: str) -> EncodeDeployment:
        """As `encoder`, but only a model of task classify."""
        ...

    def statuses(self) -> list[DeploymentStatus]:
        """Describe every deployment, then every adapter."""
        ...

    async def load_adapter(
        self, name: str, path: str, *, deployment: str | None = None, replace: bool = False
    ) -> DeploymentStatus:
        """Serve the LoRA adapter at `path` under a name of its own; return once it answers.

        None: the one deployment that takes adapters. `replace` allows a name that is loaded
        already; what runs with it goes on unchanged. Raises `AdapterLoadingOff`,
        `AdapterRejected`, `InvalidRequest` (param `model`), and what `generate` may raise. A load
        that nobody waits for any more is carried out all the same.
        """
        ...

    async def drop_adapter(self, name: str) -> None:
        """Serve an adapter to no new request; those that run with it finish.

        Raises `AdapterNotFound`, `AdapterLoadingOff`, and what `generate` may raise.
        """
        ...

    @property
    def ready(self) -> bool:
        """True when every deployment can take a request; adapters do not count."""
        ...

    @property
    def draining(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingChange:
    """One setting of a model that `Administration.apply` has changed."""

    model: str
    setting: str
    """Its path below the model: `qos.reserved_share`."""
    before: Any
    after: Any


class Administration(Protocol):
    """What an operator may ask of a running platform."""

    async def apply(self, deployment: Any) -> list[SettingChange]:
        """Serve on with another deployment file, given as data; return what has changed.

        Only shares, QoS and precision may differ from the file that is served. Raises
        `InvalidRequest` naming everything that is wrong or cannot change, `Unavailable`,
        `RequestTimeout`. All of it is applied or, where it raises the first two, nothing; also when
        the caller leaves.
        """
        ...

    def decisions(self, model: str) -> Sequence[KeptDecision]:
        """Return the last decisions about a model, oldest first; raises `ModelNotFound`."""
        ...


@dataclass(slots=True, kw_only=True)
class Usage:
    """Tokens that a request cost."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
