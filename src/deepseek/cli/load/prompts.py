"""Makes prompts of a wanted length in tokens, without the model's tokenizer.

Prompts are drawn from common English words, about one token each. How many exactly, and how many
tokens the chat template adds, two probing requests tell (`measure_token_scale`).
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

_WORDS = (  # noqa: SIM905  a paragraph reads better than a list
    "the people time year work day life world place water house school state family group country "
    "problem hand part case week company system program question government number night point "
    "home room mother area money story fact month lot right study book eye job word business issue "
    "side kind head service friend father power hour game line end member law car city name team "
    "minute idea body information back parent face others level office door health person art war "
    "history party result change morning reason research girl guy moment air teacher education"
).split()

_PROBE_WORDS = (32, 160)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScale:
    """How words become prompt tokens on one server: `fixed_tokens + tokens_per_word * words`."""

    tokens_per_word: float = 1.0
    fixed_tokens: float = 0.0

    def words_for(self, tokens: int) -> int:
        """Return the number of words that come closest to a prompt of so many tokens."""
        return max(1, round((tokens - self.fixed_tokens) / self.tokens_per_word))


async def measure_token_scale(
    count_prompt_tokens: Callable[[str], Awaitable[int | None]],
) -> TokenScale:
    """Return the scale that two prompts show, or one token per word where none are counted."""
    short, long = _PROBE_WORDS
    counts = [await count_prompt_tokens(random_text(words, seed=words)) for words in _PROBE_WORDS]
    if counts[0] is None or counts[1] is None or counts[1] <= counts[0]:
        return TokenScale()
    per_word = (counts[1] - counts[0]) / (long - short)
    return TokenScale(tokens_per_word=per_word, fixed_tokens=counts[0] - per_word * short)


def random_text(num_words: int, *, seed: int | str) -> str:
    """Return words that only this seed gives, so that no prefix cache knows them."""
    return " ".join(random.Random(seed).choices(_WORDS, k=num_words))  # noqa: S311  no secret


def text_of_blocks(blocks: Sequence[int], *, num_words: int, words_per_block: int) -> str:
    """Return words whose blocks repeat wherever a block's id does."""
    parts: list[str] = []
    left = num_words
    for block in blocks:
        if left <= 0:
            break
        parts.append(random_text(min(left, words_per_block), seed=f"block {block}"))
        left -= words_per_block
    if left > 0:
        parts.append(random_text(left, seed=f"after {list(blocks)}"))
    return " ".join(parts)
