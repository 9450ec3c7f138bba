"""What a sequence keeps from step to step for its guesses: pure bookkeeping."""

from dataclasses import dataclass, field

PRIOR_CHANCE = 0.6
_ADAPTATION = 0.2
"""Weight of the newest draft."""
_FIRST_PAUSE_TOKENS = 16
_LONGEST_PAUSE_TOKENS = 512


@dataclass(slots=True)
class Acceptance:
    """How a sequence's drafts have fared, and until when none are made."""

    chance: float = PRIOR_CHANCE
    """That a guessed token is right, given that those before it were."""
    pause_tokens: int = _FIRST_PAUSE_TOKENS
    is_new: bool = True
    """No draft has been thought of."""
    resume_at: int = 0
    """Length of the sequence from which drafts are made again."""
    is_on_trial: bool = False
    """After a pause a guess is tried, whatever it seems worth."""

    def observe(self, num_drafted: int, num_accepted: int) -> float:
        """Learn how a draft fared; return the part of its tried tokens that was right."""
        right = num_accepted / min(num_accepted + 1, num_drafted)
        self.chance += _ADAPTATION * (right - self.chance)
        self.is_on_trial = False
        if num_accepted == num_drafted:
            self.pause_tokens = _FIRST_PAUSE_TOKENS
        return right

    def pause(self, length: int) -> None:
        """Make no drafts for a while from `length` on, each time for longer."""
        self.resume_at = length + self.pause_tokens
        self.pause_tokens = min(2 * self.pause_tokens, _LONGEST_PAUSE_TOKENS)
        self.is_on_trial = True


@dataclass(slots=True)
class Lookup:
    """One sequence's n-grams."""

    ngram: int
    last_places: dict[tuple[int, ...], int] = field(default_factory=dict)
    """Where the token after an n-gram stood when it was last seen."""
    num_indexed: int = 0

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


@dataclass(frozen=True, slots=True)
class Guess:
    """A token guessed before it was drawn."""

    place: int
    """Its index in the sequence; of no use once the sequence is longer."""
    token: int
