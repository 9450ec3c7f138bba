"""Guessing tokens without a second model: prompt lookup, switched by what it has been worth.

Answers often repeat their prompt (quotations, code edits, summaries). Where the last tokens of a
sequence have stood in it before, the tokens that followed then are guessed to follow now, and one
step verifies them all (prompt lookup decoding; the verification is that of arXiv:2211.17192, exact
for greedy and, because every place of an answer has its own random number, for sampled tokens too).

A guess costs one more row in a step. It is made only where its chance times what a step's fixed
cost would be saved exceeds that: both are measured while serving.
"""

import math
from dataclasses import dataclass, field

from deepseek.engine.sequence import Sequence

_PRIOR_ACCEPTANCE = 0.6
_ADAPTATION = 0.2
"""Weight of the newest draft in a sequence's acceptance."""
_FIRST_PAUSE_TOKENS = 16
_LONGEST_PAUSE_TOKENS = 512
_FORGETTING = 0.98
_DEFAULT_ROW_COST = 0.05
"""Cost of one more row as a part of a one-row step, before steps of different sizes were seen."""


@dataclass(slots=True)
class StepCost:
    """Seconds of a step as `fixed + row * rows`, by least squares that forget."""

    _sums: list[float] = field(default_factory=lambda: [0.0] * 5)

    def observe(self, rows: int, seconds: float) -> None:
        """Take a step's time into account."""
        new = (1.0, rows, rows * rows, seconds, rows * seconds)
        self._sums = [_FORGETTING * old + value for old, value in zip(self._sums, new, strict=True)]

    def coefficients(self) -> tuple[float, float]:
        """Return (fixed, row), each at least a small positive share of a step."""
        count, x, xx, y, xy = self._sums
        if count == 0:
            return 1.0, _DEFAULT_ROW_COST
        spread = xx * count - x * x
        mean = y / count
        row = (xy * count - x * y) / spread if spread > 0.25 * count * count else 0.0
        if row <= 0:
            row = _DEFAULT_ROW_COST * mean
        return max(mean - row * x / count, 0.01 * mean), row


@dataclass(slots=True)
class Lookup:
    """One sequence's n-grams and how its drafts have fared."""

    ngram: int
    last_places: dict[tuple[int, ...], int] = field(default_factory=dict)
    """Where the token after an n-gram stood when it was last seen."""
    num_indexed: int = 0
    acceptance: float = _PRIOR_ACCEPTANCE
    """Chance that a guessed token is right, given that those before it were."""
    pause_tokens: int = _FIRST_PAUSE_TOKENS
    resume_at: int = 0
    """Length of the sequence from which drafts are made again."""

    def continuation(self, tokens: list[int], count: int) -> tuple[int, ...]:
        """Return the `count` tokens that followed the last n-gram where it stood before, or none.

        Where they reach the end, what they say themselves goes on: a loop is guessed as a loop.
        """
        for end in range(max(self.num_indexed, self.ngram), len(tokens)):
            self.last_places[tuple(tokens[end - self.ngram : end])] = end
        self.num_indexed = len(tokens)
        place = self.last_places.get(tuple(tokens[-self.ngram :]))
        if place is None:
            return ()
        guessed = tokens[place : place + count]
        for index in range(count - len(guessed)):
            guessed.append(guessed[index])
        return tuple(guessed)


class Speculation:
    """Drafts for one model's sequences."""

    def __init__(self, *, ngram: int = 3, max_draft: int = 8) -> None:
        """Match the last `ngram` tokens; guess at most `max_draft` tokens a step."""
        self.num_drafted = 0
        self.num_accepted = 0
        self._ngram = ngram
        self._max_draft = max_draft
        self._cost = StepCost()
        self._num_decoding = 1

    def observe_step(self, *, num_rows: int, num_decoding: int, seconds: float) -> None:
        """Learn from the time of a step without prompt chunks."""
        self._num_decoding = max(1, num_decoding)
        self._cost.observe(num_rows, seconds)

    def draft(self, sequence: Sequence) -> tuple[int, ...]:
        """Return guessed tokens to verify, () where they would not pay."""
        params = sequence.sampling
        room = params.max_tokens - sequence.num_output - 1
        if room <= 0 or sequence.needs_last_token or sequence.num_in_flight:
            return ()
        lookup = sequence.lookup
        if lookup is None:
            lookup = sequence.lookup = Lookup(self._ngram)
        if len(sequence.tokens) < lookup.resume_at:
            return ()
        count = min(room, self._max_draft, self._worthwhile(lookup.acceptance))
        if count < 1:
            lookup.resume_at = len(sequence.tokens) + lookup.pause_tokens
            lookup.pause_tokens = min(2 * lookup.pause_tokens, _LONGEST_PAUSE_TOKENS)
            # One more try after the pause, with the least that can show a change.
            lookup.acceptance = max(lookup.acceptance, self._break_even() * 1.01)
            return ()
        return lookup.continuation(sequence.tokens, count)

    def observe(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Learn how a draft of the sequence fared."""
        self.num_drafted += num_drafted
        self.num_accepted += num_accepted
        lookup = sequence.lookup
        if lookup is None:
            return
        tried = min(num_accepted + 1, num_drafted)
        rate = num_accepted / tried
        lookup.acceptance += _ADAPTATION * (rate - lookup.acceptance)
        if num_accepted == num_drafted:
            lookup.pause_tokens = _FIRST_PAUSE_TOKENS

    def _break_even(self) -> float:
        """Return the chance from which one guessed token pays."""
        fixed, row = self._cost.coefficients()
        return row / (fixed / self._num_decoding + row)

    def _worthwhile(self, acceptance: float) -> int:
        """Return the longest draft whose last token still pays: acceptance ** n > break-even."""
        threshold = self._break_even()
        if acceptance <= threshold:
            return 0
        if acceptance >= 1.0:
            return self._max_draft
        return int(math.log(threshold) / math.log(acceptance))
