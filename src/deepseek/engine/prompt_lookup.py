"""Guesses from the text so far (prompt lookup decoding).

Answers often repeat their prompt (quotations, code edits, summaries). Where the last tokens of a
sequence have stood in it before, the tokens that followed then are guessed to follow now.
"""

from deepseek.engine.drafts import Lookup
from deepseek.engine.sequence import Sequence
from deepseek.engine.speculation import Speculation


class PromptLookup(Speculation):
    """See `deepseek.engine.speculation.Speculation`."""

    def __init__(self, *, ngram: int = 3, max_draft: int = 8) -> None:
        """Match the last `ngram` tokens; guess at most `max_draft` tokens a step."""
        super().__init__(max_draft=max_draft)
        self._ngram = ngram

    def draft(self, sequence: Sequence) -> tuple[int, ...]:
        count = 0 if sequence.num_in_flight else self._allowance(sequence)
        if count < 1:
            return ()
        if sequence.lookup is None:
            sequence.lookup = Lookup(self._ngram)
        return sequence.lookup.continuation(sequence.tokens, count)
