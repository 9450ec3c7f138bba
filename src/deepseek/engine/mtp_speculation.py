"""Guesses of the model's own multi-token prediction head, made at the end of a step for the next.

The head guesses one token; `deepseek.engine.mtp_runner` runs it.
"""

from deepseek.engine.drafts import Guess
from deepseek.engine.sequence import Sequence
from deepseek.engine.speculation import Speculation


class MTPSpeculation(Speculation):
    """See `deepseek.engine.speculation.Speculation`."""

    def __init__(self) -> None:
        super().__init__(max_draft=1)
        self._guessing_s = 0.0
        """Of the step run last."""

    def wants(self, sequence: Sequence, *, num_new: int) -> bool:
        """Say whether a guess would pay in the step after the one that adds `num_new` tokens."""
        return self._allowance(sequence, num_new=num_new) > 0

    def offer(self, guesses: list[tuple[Sequence, Guess]], *, seconds: float) -> None:
        """Take the guesses that a step ended with; making them took `seconds`.

        To be called once a step, with no guesses too.
        """
        self._guessing_s = seconds
        if guesses:
            self._guess_cost.observe(len(guesses), seconds)
        for sequence, guess in guesses:
            sequence.guess = guess

    def draft(self, sequence: Sequence) -> tuple[int, ...]:
        guess = sequence.guess
        if guess is None or guess.place != len(sequence.tokens):
            return ()
        return (guess.token,)

    def observe_step(self, *, num_rows: int, num_decoding: int, seconds: float) -> None:
        """Learn from a step's time; that of its guesses is counted as theirs."""
        super().observe_step(
            num_rows=num_rows, num_decoding=num_decoding, seconds=seconds - self._guessing_s
        )
