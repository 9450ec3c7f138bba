"""How many tokens to guess without a second model: as many as guesses have been worth.

Guessed tokens are verified in one step as further rows of their sequence; the verification is that
of arXiv:2211.17192, exact for greedy and, because every place of an answer has its own random
number, for sampled tokens too. Who guesses is left to the classes derived from `Speculation`.

A guess costs one more row in a step, and what making it takes. It is made only where its chance
times what a step's fixed cost would be saved exceeds that: all three are measured while serving.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from deepseek.engine.drafts import PRIOR_CHANCE
from deepseek.engine.sequence import Sequence

_FORGETTING = 0.98
_TYPICAL_ADAPTATION = 0.05
"""Weight of the newest draft in what is expected of a sequence that has had none."""
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
class GuessCost:
    """Seconds that making one guess takes, by a mean that forgets; 0 before one was made."""

    _guesses: float = 0.0
    _seconds: float = 0.0

    def observe(self, guesses: int, seconds: float) -> None:
        """Take the time into account that making some guesses together took."""
        self._guesses = _FORGETTING * self._guesses + guesses
        self._seconds = _FORGETTING * self._seconds + seconds

    @property
    def mean(self) -> float:
        return self._seconds / self._guesses if self._guesses else 0.0


class Speculation(ABC):
    """Drafts for one model's sequences; never for those under a grammar or penalties."""

    def __init__(self, *, max_draft: int) -> None:
        """Guess at most `max_draft` tokens a step."""
        self.num_drafted = 0
        self.num_accepted = 0
        self._max_draft = max_draft
        self._step_cost = StepCost()
        self._guess_cost = GuessCost()
        self._num_decoding = 1
        self._typical_chance = PRIOR_CHANCE

    @abstractmethod
    def draft(self, sequence: Sequence) -> tuple[int, ...]:
        """Return guesses of the tokens after the last known one, () where they would not pay.

        They never pass the end of the answer by length.
        """

    def observe(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Learn how a draft of the sequence fared."""
        self.num_drafted += num_drafted
        self.num_accepted += num_accepted
        right = sequence.acceptance.observe(num_drafted, num_accepted)
        self._typical_chance += _TYPICAL_ADAPTATION * (right - self._typical_chance)

    def observe_step(self, *, num_rows: int, num_decoding: int, seconds: float) -> None:
        """Learn from the time of a step without prompt chunks."""
        self._num_decoding = max(1, num_decoding)
        self._step_cost.observe(num_rows, seconds)

    def _allowance(self, sequence: Sequence, *, num_new: int = 0) -> int:
        """Return how many tokens to guess once the sequence has `num_new` more than now."""
        room = sequence.sampling.max_tokens - sequence.num_output - num_new - 1
        if room <= 0 or sequence.needs_last_token:
            return 0
        length, acceptance = len(sequence.tokens) + num_new, sequence.acceptance
        if length < acceptance.resume_at:
            return 0
        if acceptance.is_new:
            # As the model's other sequences fared: where nothing is ever copied, a new one is not
            # made to find that out again.
            acceptance.chance, acceptance.is_new = self._typical_chance, False
        if acceptance.is_on_trial:
            return 1
        count = self._worthwhile(acceptance.chance)
        if count < 1:
            acceptance.pause(length)
            # If the guess on trial is right, drafts go on.
            acceptance.chance = max(acceptance.chance, min(1.0, self._break_even()))
        return min(room, count)

    def _break_even(self) -> float:
        """Return the chance from which one guessed token pays; above 1 where it never does."""
        fixed, row = self._step_cost.coefficients()
        return (row + self._guess_cost.mean) / (fixed / self._num_decoding + row)

    def _worthwhile(self, chance: float) -> int:
        """Return the longest draft whose last token still pays: chance ** n > break-even."""
        threshold = self._break_even()
        if chance <= threshold:
            return 0
        if chance >= 1.0:
            return self._max_draft
        return min(self._max_draft, int(math.log(threshold) / math.log(chance)))
