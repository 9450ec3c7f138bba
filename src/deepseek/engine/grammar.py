"""Constrained decoding: which tokens may come next under a grammar (llguidance)."""

import logging
from pathlib import Path

import llguidance
import llguidance.numpy
import numpy as np
import torch

from deepseek.core.errors import InvalidGrammar, UnsupportedParameter

logger = logging.getLogger(__name__)


class GrammarCompiler:
    """Matchers over one model's vocabulary; the tokenizer is read on first use.

    That takes 0.2 s for a vocabulary of 50,000, during which the interpreter runs no other thread:
    reading it beside the step loop would not spare running streams the pause.
    """

    def __init__(
        self, model_path: Path, *, vocab_size: int, eos_token_ids: tuple[int, ...]
    ) -> None:
        self._path = model_path / "tokenizer.json"
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._tokenizer: llguidance.LLTokenizer | None = None

    def matcher(self, grammar: str) -> "GrammarMatcher":
        """Return a matcher at the grammar's start; raises `InvalidGrammar`."""
        matcher = llguidance.LLMatcher(self._vocabulary(), grammar, log_level=0)
        if matcher.is_error():
            raise InvalidGrammar(f"the grammar cannot be followed: {matcher.get_error()}")
        return GrammarMatcher(matcher, self._vocab_size)

    def warm_up(self) -> None:
        """Read the tokenizer now, so that the first constrained request does not wait for it."""
        try:
            self._vocabulary()
        except UnsupportedParameter as error:
            logger.warning("%s", error.message)

    def _vocabulary(self) -> llguidance.LLTokenizer:
        if self._tokenizer is None:
            try:
                self._tokenizer = llguidance.LLTokenizer(
                    self._path.read_text(),
                    n_vocab=self._vocab_size,
                    eos_token=self._eos_token_ids or None,
                )
            except (OSError, ValueError) as error:
                raise UnsupportedParameter(
                    f"{self._path}: this tokenizer cannot be constrained: {error}",
                    param="response_format",
                ) from error
        return self._tokenizer


class GrammarMatcher:
    """One answer's place in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._bits = llguidance.numpy.allocate_token_bitmask(1, vocab_size)

    def forbidden(self) -> torch.Tensor:
        """Return a bool tensor (vocab_size,): True for tokens that may not come next."""
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._bits, 0)
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        return torch.from_numpy(allowed[: self._vocab_size] == 0)

    def advance(self, token_id: int) -> bool:
        """Take a drawn token; return True when the answer is complete."""
        self._matcher.consume_token(token_id)
        if self._matcher.is_error():
            raise InvalidGrammar(f"the grammar came to a stop: {self._matcher.get_error()}")
        return bool(self._matcher.is_stopped())
