"""Conversions, each in a process of its own so that the caller never imports torch."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from deepseek.core.errors import ConfigurationError, DeepseekError, error_from_wire
from deepseek.weights.child_process import (
    ChildResult,
    environment_of_own_modules,
    run_for_lines,
)
from deepseek.weights.progress import Progress
from deepseek.weights.storage import storage_full

GGUF_EXPANSION = 5
"""Most that bfloat16 safetensors take beside their GGUF file, as a multiple of it (4-bit: 3.6)."""

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    # Threads that spin while they wait take the processor from those they wait for: beside a
    # loaded neighbour, training takes 160 s with spinning threads and 60 s with sleeping ones.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def convert_gguf(file: Path, destination: Path, progress: Progress) -> None:
    """Write the model of a GGUF file into the existing directory `destination`.

    Raises `UnsupportedModel`, `CorruptWeights`, `StorageFull`, or `ConfigurationError` where the
    conversion's packages are not installed.
    """
    needed = GGUF_EXPANSION * file.stat().st_size
    _run("deepseek.weights.convert_gguf", (file, destination), needed, progress)


def train_sentiment(encoder_dir: Path, sdist: Path, destination: Path, progress: Progress) -> None:
    """Write the sentiment classifier into the existing directory `destination`."""
    needed = (encoder_dir / "model.safetensors").stat().st_size
    arguments = (encoder_dir, sdist, destination)
    _run("deepseek.weights.train_sentiment", arguments, needed, progress)


def _run(module: str, paths: Sequence[Path], needed_bytes: int, progress: Progress) -> None:
    failures: list[DeepseekError] = []

    def replay(line: str) -> None:
        event = json.loads(line)
        if "stage" in event:
            progress.stage(event["stage"], total=event["total"], unit=event["unit"])
        elif "advance" in event:
            progress.advance(event["advance"])
        else:
            failures.append(error_from_wire(event["error"], event["message"]))

    command = [sys.executable, "-m", module, *map(str, paths)]
    environment = {**environment_of_own_modules(), **_ENVIRONMENT}
    result = run_for_lines(command, replay, environment=environment)
    destination = paths[-1]
    if result.is_storage_full:
        raise storage_full(destination.parent, needed_bytes, purpose=f"converting {paths[0].name}")
    if failures:
        raise failures[0]
    if result.returncode != 0:
        raise ConfigurationError(_unexpected_end(module, result))


def _unexpected_end(module: str, result: ChildResult) -> str:
    last = result.error_lines[-1] if result.error_lines else "no message"
    if "ModuleNotFoundError" in last:
        return (
            f"{module.rpartition('.')[2]} needs a package that is not installed ({last}); "
            "install `deepseek-platform[engine,convert]`"
        )
    ending = f"exit code {result.returncode}"
    if result.returncode < 0:
        ending = f"signal {-result.returncode}"
    return f"{module.rpartition('.')[2]} ended with {ending}: {last}"
