"""Which block of attention state belongs to whom: allocation, sharing, prefix reuse, eviction.

Pure bookkeeping: no tensor, no device. A block holds the rows of `block_tokens` consecutive tokens.
A full block is published under a digest of everything up to its end (SHA-256, chained from block
to block, so equal digests mean equal prefixes); a later prompt that begins alike shares it. Blocks
that nobody uses stay published until their memory is needed and go least recently used first, the
end of a prefix before its beginning (PagedAttention, arXiv:2309.06180; the block rule of vLLM).
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

DEFAULT_BLOCK_TOKENS = 16


class BlockPool:
    """The blocks of one model."""

    def __init__(self, num_blocks: int, *, block_tokens: int = DEFAULT_BLOCK_TOKENS) -> None:
        """Start with every block free and blank."""
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        # Blank blocks are taken from the end: the lowest first, so that memory is touched late.
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        """Published blocks without a user, least recently used first."""
        self._users = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks
        self._published: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` could give now, cached ones included."""
        return len(self._blank) + len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    @property
    def num_cached(self) -> int:
        """Blocks kept for reuse only."""
        return len(self._cached)

    def match(self, digests: Sequence[bytes]) -> list[int]:
        """Return the blocks of the longest published prefix of a chain; takes none of them."""
        found: list[int] = []
        for digest in digests:
            block = self._published.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def share(self, blocks: Sequence[int]) -> None:
        """Become a user of published blocks."""
        for block in blocks:
            if self._users[block] == 0:
                del self._cached[block]
            self._users[block] += 1

    def allocate(self, count: int) -> list[int] | None:
        """Take `count` blocks, evicting cached ones; None, and nothing changed, if there are fewer.

        Their content is what the last user left.
        """
        if count > self.num_free:
            return None
        taken: list[int] = []
        for _ in range(count):
            if self._blank:
                block = self._blank.pop()
            else:
                block, _ = self._cached.popitem(last=False)
                self._unpublish(block)
            self._users[block] = 1
            taken.append(block)
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Stop using a sequence's blocks, given in order; published ones stay for reuse."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            if self._digests[block] is None:
                self._blank.append(block)
            else:
                self._cached[block] = None

    def publish(self, block: int, digest: bytes) -> None:
        """Let others share a full block; a digest that is published already keeps its block."""
        if self._digests[block] is None and digest not in self._published:
            self._published[digest] = block
            self._digests[block] = digest

    def forget(self) -> None:
        """Have no block found again: the memory of all of them is about to be given back.

        Nobody may use one.
        """
        for block in list(self._cached):
            self._unpublish(block)
        self._blank.extend(reversed(self._cached))
        self._cached.clear()

    def discard(self, blocks: Sequence[int]) -> None:
        """Release blocks whose content is not trusted: nobody finds them again."""
        for block in blocks:
            self._unpublish(block)
        self.release(blocks)

    def _unpublish(self, block: int) -> None:
        digest, self._digests[block] = self._digests[block], None
        if digest is not None:
            del self._published[digest]


def extend_digests(
    digests: list[bytes],
    tokens: Sequence[int],
    *,
    block_tokens: int,
    salt: bytes = b"",
    lookahead: int = 0,
) -> None:
    """Append the digests of the full blocks of `tokens` that are not in the chain yet.

    `salt` keeps apart what must never be shared (another adapter's state for the same tokens).
    A digest covers `lookahead` tokens after its block too, and waits for them.
    """
    width = block_tokens + lookahead
    for start in range(len(digests) * block_tokens, len(tokens) - width + 1, block_tokens):
        digest = hashlib.sha256(digests[-1] if digests else salt)
        digest.update(array("I", tokens[start : start + width]).tobytes())
        digests.append(digest.digest())


def common_prefix(left: list[int], right: list[int]) -> int:
    """Return the length of the common prefix, by bisection over slice comparisons (C speed)."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
