"""The peer OpenVINO GenAI: its continuous batching pipeline on the 4-bit GGUF file.

It has no HTTP server. `peers/openvino_server.py` gives it the cheapest we could write, so that all
are measured by the same generator; `in_process` measures it without any, which no server can beat
by more than its own cost.
"""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from frame import ServerProcess, peer_environment
from serving_measures.platform import MeasurementFailed, Run, free_port

from engine_measures.gguf import gguf_file

REQUIREMENTS = ("openvino-genai==2026.4.1.0",)
_PEERS = Path(__file__).parent / "peers"


def install() -> Path:
    """Return the Python of the peer's environment, made on the first call."""
    return peer_environment("openvino", REQUIREMENTS, torch=False)


@contextmanager
def serve_peer(run: Run, *, num_threads: int) -> Iterator[str]:
    """Serve until the block ends; gives the address."""
    port = free_port()
    command = [
        str(install()), str(_PEERS / "openvino_server.py"), "--model", str(gguf_file()),
        "--port", str(port), "--threads", str(num_threads),
    ]  # fmt: skip
    with ServerProcess(command, log=run.work / "openvino.log") as process:
        process.wait_until_ready(f"http://127.0.0.1:{port}/health", timeout_s=300)
        yield f"http://127.0.0.1:{port}"


def in_process(
    prompts: Sequence[str], *, concurrency: int, num_tokens: int, num_threads: int
) -> float:
    """Return output tokens/s of a closed loop over `add_request` and `step`, no HTTP, no text.

    Raises `MeasurementFailed` where an answer has another length.
    """
    command = [
        str(install()), str(_PEERS / "openvino_in_process.py"), "--model", str(gguf_file()),
        "--threads", str(num_threads), "--concurrency", str(concurrency),
        "--tokens", str(num_tokens),
    ]  # fmt: skip
    result = subprocess.run(
        command, input=json.dumps(prompts), capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise MeasurementFailed(f"openvino in process: {result.stderr[-500:]}")
    answer = json.loads(result.stdout.splitlines()[-1])
    if set(answer["lengths"]) != {num_tokens}:
        raise MeasurementFailed(f"openvino in process: answers of {set(answer['lengths'])} tokens")
    return num_tokens * len(prompts) / float(answer["duration_s"])
