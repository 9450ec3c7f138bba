"""Runs in vLLM's environment: the trace against vLLM's own `KVCacheManager`.

    python -m prefix_measures.vllm_rule < job.json

The job names the requests, the sizes of the cache in blocks and the replay's settings; one line of
JSON per size comes back. No model is loaded: the manager is vLLM's class, set up as for a model
with full attention, prefix caching on.
"""

import itertools
import json
import sys
from dataclasses import asdict

import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request as VllmRequest

from prefix_measures.replay import BLOCK_TOKENS, Request, replay

_LONGEST_TOKENS = 1 << 20


class VllmBlocks:
    """See `prefix_measures.replay.PrefixCache` for the promises."""

    def __init__(self, num_blocks: int) -> None:
        layer = FullAttentionSpec(
            block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=1, dtype=torch.float32
        )
        config = KVCacheConfig(
            num_blocks=num_blocks + 1,  # it keeps one for padding
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], layer)],
        )
        self._manager = KVCacheManager(
            config,
            max_model_len=_LONGEST_TOKENS,
            scheduler_block_size=BLOCK_TOKENS,
            hash_block_size=BLOCK_TOKENS,
            enable_caching=True,
        )
        self._hasher = get_request_block_hasher(BLOCK_TOKENS, sha256)
        self._numbers = itertools.count()

    def start(self, tokens: list[int], num_output: int) -> tuple[VllmRequest, int] | None:
        request = VllmRequest(
            request_id=str(next(self._numbers)),
            prompt_token_ids=tokens,
            sampling_params=SamplingParams(max_tokens=num_output),
            pooling_params=None,
            block_hasher=self._hasher,
        )
        blocks, found, _ = self._manager.get_computed_blocks(request)
        taken = self._manager.allocate_slots(
            request,
            len(tokens) - found,
            num_new_computed_tokens=found,
            new_computed_blocks=blocks,
            num_lookahead_tokens=num_output,
        )
        if taken is None:
            return None
        request.num_computed_tokens = len(tokens)
        return request, found

    def end(self, handle: VllmRequest, answer: list[int]) -> None:
        handle.append_output_token_ids(answer)
        self._manager.cache_blocks(handle, handle.num_tokens)
        self._manager.free(handle)


def main() -> None:
    """Read the job, replay it at each size."""
    init_none_hash(sha256)
    job = json.load(sys.stdin)
    requests = [Request(tuple(blocks), *lengths) for blocks, *lengths in job["requests"]]
    for num_blocks in job["num_blocks"]:
        result = replay(
            VllmBlocks(num_blocks),
            requests,
            tokens_per_id=job["tokens_per_id"],
            max_running=job["max_running"],
        )
        print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    main()
