"""The peer: `transformers serve` of the same version, in an environment of its own.

What was found of version 5.23 on a CPU:

- It serves a local directory, named as the argument; requests must name that same path.
- `stream_options` is taken and ignored: the usage comes with the last chunk, and no `[DONE]` after
  it. Fields it does not know, such as `ignore_eos`, are answered with 422.
- `generation_config`, a JSON string in the request, replaces the model's; an end-of-sequence id of
  -1 never appears, so that every answer has the full length, in both modes.
- Without `--continuous-batching` one request runs at a time and the others wait.
- `--continuous-batching` works on a CPU. `--compile` made no difference at concurrency 1; float32
  was slower than bfloat16 where the processor computes in bfloat16.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from frame import ServerProcess, peer_environment

from serving_measures.platform import Run, free_port

REQUIREMENTS = ("transformers[serving]==5.23.0",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One way to run the peer."""

    name: str
    arguments: tuple[str, ...] = ()


MODES = (
    Mode(name="sequential"),
    Mode(name="continuous batching", arguments=("--continuous-batching",)),
)


def install() -> Path:
    """Return the Python of the peer's environment, made on the first call."""
    return peer_environment("serving", REQUIREMENTS)


def answer_of(num_tokens: int) -> dict[str, str]:
    """Return the request fields that make every answer greedy and exactly so long."""
    config = {
        "max_new_tokens": num_tokens,
        "do_sample": False,
        "eos_token_id": -1,
        "pad_token_id": 0,
    }
    return {"generation_config": json.dumps(config)}


@contextmanager
def serve_peer(run: Run, mode: Mode, model: Path, *, python: Path) -> Iterator[str]:
    """Serve a model directory until the block ends; gives the address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        str(python.with_name("transformers")), "serve", str(model), "--device", "cpu",
        "--dtype", "bfloat16", "--host", "127.0.0.1", "--port", str(port), *mode.arguments,
    ]  # fmt: skip
    environment = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "PATH": os.environ.get("PATH", "")}
    log = run.work / f"peer-{mode.name.replace(' ', '-')}.log"
    with ServerProcess(command, log=log, environment=environment) as process:
        process.wait_until_ready(f"{url}/health", timeout_s=300)
        yield url
