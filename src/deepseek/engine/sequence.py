"""One generation inside the decoder engine."""

import random
from dataclasses import dataclass, field

import torch

from deepseek.core.requests import GenerateRequest
from deepseek.engine.grammar import GrammarMatcher
from deepseek.engine.kv_cache import Slot


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
    """A request, its tokens so far, and how many of them the KV cache holds."""

    request: GenerateRequest
    tokens: list[int]
    """Prompt, then answer."""
    num_prompt: int
    slot: Slot | None = None
    num_computed: int = 0
    num_cached: int = 0
    """Prompt tokens that the prefix cache gave at the first admission."""
    reported: bool = False
    """True once a delta has told the caller `num_cached`."""
    generator: random.Random = field(default_factory=random.Random)
    matcher: GrammarMatcher | None = None
    history: TokenHistory | None = None

    @property
    def id(self) -> int:
        return self.request.id

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens still to be run through the model: 1 while decoding."""
        return len(self.tokens) - self.num_computed
