"""One generation inside the decoder engine."""

import math
import random
from dataclasses import dataclass, field

import torch

from deepseek.core.precision import Precision
from deepseek.core.requests import GenerateRequest, SamplingParams
from deepseek.engine.adapters import LoadedAdapter
from deepseek.engine.drafts import Acceptance, Guess, Lookup
from deepseek.engine.grammar import GrammarMatcher


@dataclass(slots=True, kw_only=True)
class TokenHistory:
    """What penalties look at, per vocabulary entry."""

    output_counts: torch.Tensor
    """(vocab,) float32: how often each token was drawn."""
    seen: torch.Tensor
    """(vocab,) bool: tokens of the prompt and of the answer."""

    def add(self, token_id: int) -> None:
        """Record a drawn token."""
        self.output_counts[token_id] += 1
        self.seen[token_id] = True


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """A request, its tokens so far, and what of them the KV cache holds.

    Steps may run ahead of their results: `num_scheduled` counts rows given to steps, finished or
    not, and `num_in_flight` the tokens that those steps will yield and that nobody has seen yet.
    """

    request: GenerateRequest
    tokens: list[int]
    """Prompt, then answer."""
    num_prompt: int
    arrived_s: float = 0.0
    due_s: float = math.inf
    """When the next token is due."""
    itl_s: float = math.inf
    """Promised mean time between tokens."""
    first_token_s: float | None = None
    has_begun: bool = False
    """True once a step has held part of it."""
    adapter: LoadedAdapter | None = None
    """The LoRA adapter, acquired until the sequence is over."""
    precision: Precision | None = None
    """What all its rows are computed in, INT8 or INT4; None where the model has no choice."""
    blocks: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    """Digests of the full blocks of `tokens`, as far as they have been needed."""
    num_published: int = 0
    """Blocks, from the first, that have been published."""
    num_scheduled: int = 0
    num_in_flight: int = 0
    num_cached: int = 0
    """Prompt tokens that the prefix cache gave at the first admission."""
    is_reported: bool = False
    """True once a delta has told the caller `num_cached`."""
    is_running: bool = False
    """True between admission and the end, or preemption."""
    is_over: bool = False
    """Finished, failed or aborted; results still in flight are dropped."""
    generator: random.Random = field(default_factory=random.Random)
    uniforms: list[float] = field(default_factory=list)
    """What `generator` has given, by place in the answer."""
    matcher: GrammarMatcher | None = None
    history: TokenHistory | None = None
    acceptance: Acceptance = field(default_factory=Acceptance)
    """Of the drafts made for it."""
    lookup: Lookup | None = None
    """N-grams of the tokens, where drafts are made from them."""
    guess: Guess | None = None
    """What the model's own head guessed last."""

    @property
    def id(self) -> int:
        return self.request.id

    @property
    def salt(self) -> bytes:
        """What keeps the KV blocks of different adapters and precisions apart."""
        adapter = b"" if self.adapter is None else self.adapter.salt
        return adapter if self.precision is None else adapter + f"\0{self.precision}".encode()

    @property
    def adapter_index(self) -> int:
        """What `RowChoices.adapters` has in the sequence's rows."""
        return 0 if self.adapter is None else self.adapter.index

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def num_computed(self) -> int:
        """Rows given to steps: the context that the next one attends to."""
        return self.num_scheduled

    def was_answered(self, now_s: float) -> None:
        """Note that tokens came, and when the next one is due.

        Deadlines run from the first token on, so the mean time between tokens is what is promised.
        """
        if self.first_token_s is None:
            self.first_token_s = now_s
        self.due_s = self.first_token_s + self.num_output * self.itl_s

    @property
    def num_pending(self) -> int:
        """Rows still to be given to a step: 1 while decoding."""
        return len(self.tokens) + self.num_in_flight - self.num_scheduled

    @property
    def is_decoding(self) -> bool:
        return self.num_pending == 1 and self.num_output + self.num_in_flight > 0

    @property
    def needs_last_token(self) -> bool:
        """True where the next draw depends on the token before it in ways only the host knows."""
        return self.matcher is not None or self.history is not None

    def uniform(self, place: int) -> float:
        """Return the number in [0, 1) that draws the answer's token at `place`.

        It depends on the place alone, so that a guessed and rejected token, or a second computation
        after a preemption, changes nothing.
        """
        while len(self.uniforms) <= place:
            self.uniforms.append(self.generator.random())
        return self.uniforms[place]
