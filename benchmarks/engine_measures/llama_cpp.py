"""The peer llama.cpp: the server inside the xllamacpp wheel, on the 4-bit GGUF file.

The wheel's build for x86-64 uses AVX2 and repacked weights, no AVX-512; a server has a fixed number
of slots, each with its own part of the context.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from frame import ServerProcess, peer_environment
from serving_measures.platform import Run, free_port

from engine_measures.gguf import gguf_file

REQUIREMENTS = ("xllamacpp==2026.10.11549",)
NUM_SLOTS = 32
"""The highest concurrency measured."""
_SCRIPT = Path(__file__).parent / "peers" / "llama_cpp_server.py"


def install() -> Path:
    """Return the Python of the peer's environment, made on the first call."""
    return peer_environment("llamacpp", REQUIREMENTS, torch=False)


@contextmanager
def serve_peer(run: Run, *, num_threads: int) -> Iterator[str]:
    """Serve until the block ends; gives the address."""
    port = free_port()
    command = [
        str(install()), str(_SCRIPT), "--model", str(gguf_file()), "--port", str(port),
        "--threads", str(num_threads), "--parallel", str(NUM_SLOTS),
    ]  # fmt: skip
    with ServerProcess(command, log=run.work / "llama-cpp.log") as process:
        process.wait_until_ready(f"http://127.0.0.1:{port}/health", timeout_s=120)
        yield f"http://127.0.0.1:{port}"
