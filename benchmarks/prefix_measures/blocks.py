"""Our block pool as a `PrefixCache`, used as the engine's scheduler uses it."""

from dataclasses import dataclass

from deepseek.engine.kv_cache import BlockPool, extend_digests
from prefix_measures.replay import BLOCK_TOKENS


@dataclass(slots=True)
class _Running:
    tokens: list[int]
    blocks: list[int]
    digests: list[bytes]


class OurBlocks:
    """See `prefix_measures.replay.PrefixCache` for the promises."""

    def __init__(self, num_blocks: int) -> None:
        self._pool = BlockPool(num_blocks, block_tokens=BLOCK_TOKENS)

    def start(self, tokens: list[int], num_output: int) -> tuple[_Running, int] | None:
        running = _Running(tokens, [], [])
        extend_digests(running.digests, tokens, block_tokens=BLOCK_TOKENS)
        # The last token is always computed: its row gives the next token's logits.
        most = (len(tokens) - 1) // BLOCK_TOKENS
        shared = self._pool.match(running.digests[:most])
        self._pool.share(shared)
        num_blocks = -(-(len(tokens) + num_output) // BLOCK_TOKENS)
        taken = self._pool.allocate(num_blocks - len(shared))
        if taken is None:
            self._pool.release(shared)
            return None
        running.blocks = shared + taken
        self._publish(running)
        return running, len(shared) * BLOCK_TOKENS

    def end(self, handle: _Running, answer: list[int]) -> None:
        handle.tokens.extend(answer)
        extend_digests(handle.digests, handle.tokens, block_tokens=BLOCK_TOKENS)
        self._publish(handle)
        self._pool.release(handle.blocks)

    def _publish(self, running: _Running) -> None:
        for block, digest in zip(running.blocks, running.digests, strict=False):
            self._pool.publish(block, digest)
