"""What the platform asks an engine to do, in tokens.

Text ends at the edge: a request that reaches a worker carries token ids only, so that the worker
spends its processor on the model.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from deepseek.core.precision import Precision


class Task(StrEnum):
    """What a deployment does."""

    GENERATE = "generate"
    EMBED = "embed"
    CLASSIFY = "classify"


class FinishReason(StrEnum):
    """Why a generation ended; the first two are the OpenAI API's words."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is drawn. Zero temperature is greedy and ignores the rest of the filters.

    Order of application: grammar, `logit_bias`, penalties, temperature, `top_k`, `top_p`, `min_p`.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    min_p: float = 0.0
    """Drop tokens less probable than `min_p` times the most probable one."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens seen (CTRL, arXiv:1909.05858)."""
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    """The same seed, prompt and settings give the same tokens, whatever runs beside them."""
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end the generation, besides the model's own end-of-sequence ids."""
    ignore_eos: bool = False
    min_tokens: int = 0
    """End-of-sequence and stop ids are not drawn before this many tokens."""
    num_logprobs: int | None = None
    """None: no log-probabilities; 0: of the chosen token; n: of the n most probable besides."""
    grammar: str | None = None
    """An llguidance grammar (its JSON form) that the answer must follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One generation; `id` is unique among the requests its worker holds."""

    id: int
    model: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    adapter: str | None = None
    """Name of a LoRA adapter loaded for the model; None: the model as it is."""
    precision: Precision | None = None
    """What to compute in, of the model's own; None: its best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeRequest:
    """Several sequences through an encoder; the answer has one row per sequence, in order."""

    id: int
    model: str
    sequences: list[list[int]]
    token_type_ids: list[list[int]] | None = None
    """Segment ids of sentence pairs (a cross-encoder's input); None: all zero."""
    task: Task = Task.EMBED
    """EMBED gives pooled vectors, CLASSIFY gives logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Log-probabilities at one position, before temperature and filters."""

    chosen: float
    top: list[tuple[int, float]]
    """(token id, log-probability), most probable first."""
