"""The peer: `generate` of transformers in bfloat16, eager torch, without a server around it.

A batch is padded on the left and begins and ends at once, which suits it: the answers have one
length. It pays for no HTTP and no text.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from engine_measures.placement import Placement, running_on
from serving_measures.platform import CHAT_MODEL, MeasurementFailed

from deepseek.weights.cache import ModelCache

_SCRIPT = Path(__file__).parent / "peers" / "eager_generate.py"


def tokens_per_s(prompts: Sequence[str], *, num_tokens: int, placement: Placement) -> float:
    """Return output tokens/s of all prompts in one batch, on the server's cores."""
    command = [
        sys.executable, str(_SCRIPT), "--model", str(ModelCache.default().path(CHAT_MODEL)),
        "--threads", str(placement.num_threads), "--tokens", str(num_tokens),
    ]  # fmt: skip
    with running_on(placement.server_cores):
        result = subprocess.run(
            command, input=json.dumps(list(prompts)), capture_output=True, text=True, check=False
        )
    if result.returncode != 0:
        raise MeasurementFailed(f"transformers: {result.stderr[-500:]}")
    duration_s = float(json.loads(result.stdout.splitlines()[-1])["duration_s"])
    return num_tokens * len(prompts) / duration_s
