"""Measures one engine without HTTP: what `deepseek bench --engine` does.

It starts the worker of one model, as `deepseek serve` would, and speaks to it in token ids.
"""

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from deepseek.cli.load.engine_loop import random_prompts, run_engine_load
from deepseek.cli.load.event_loop import loop_factory
from deepseek.cli.load.report import LoadReport
from deepseek.cli.progress import TerminalProgress, counting_bar
from deepseek.cli.serve import import_app
from deepseek.core.errors import ConfigurationError
from deepseek.core.requests import Task
from deepseek.core.settings_faults import plain_faults
from deepseek.deployment_file import DEFAULT_POOL, DeploymentFile, load_deployment_file

if TYPE_CHECKING:
    from types import ModuleType

    from deepseek.serving.replica import Replica
    from deepseek.weights.model_directory import ModelDirectory

MODEL_OPTIONS = ("engine", "quantization", "speculation", "dtype")
POOL_OPTIONS = ("device", "num_threads")
_MODEL_NAME = "model"


def measure_engine(arguments: argparse.Namespace) -> LoadReport:
    """Start the worker, run the load and end it; raises errors of `core.errors`."""
    app = import_app()
    path = Path(arguments.file) if arguments.file else None
    file = _from_options(arguments) if path is None else _from_file(path, arguments)
    base_dir = Path.cwd() if path is None else path.resolve().parent
    with TerminalProgress() as progress:
        file, directories = app.prepare(file, base_dir=base_dir, progress=progress)
    (directory,) = directories.values()
    if directory.task is not Task.GENERATE:
        raise ConfigurationError(
            f"--model: {arguments.model!r} is there to {directory.task}; an engine is measured in "
            "generated tokens: name a language model, or measure a server with --task"
        )
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_measure(app, file, directories, arguments))


async def _measure(
    app: "ModuleType",
    file: DeploymentFile,
    directories: "dict[str, ModelDirectory]",
    arguments: argparse.Namespace,
) -> LoadReport:
    (model,) = file.models
    count = arguments.requests or 64
    async with app.started_platform(file, directories, log_level="warning") as platform:
        (replica,) = platform.replicas
        prompts = _prompts(replica, model, arguments, count=count)
        with counting_bar(f"generate {arguments.model}", total=count) as advance:
            load = {
                "model": model,
                "label": arguments.model,
                "engine": arguments.engine,
                "timeout_s": arguments.timeout,
            }
            # One request that is not counted: what is compiled or read on first use is there then.
            await run_engine_load(
                replica,
                prompts[:1],
                output_tokens=2,
                concurrency=1,
                on_done=lambda: None,
                **load,
            )
            return await run_engine_load(
                replica,
                prompts[1:],
                output_tokens=arguments.output_tokens or 64,
                concurrency=arguments.concurrency or 8,
                on_done=advance,
                **load,
            )


def _prompts(
    replica: "Replica", model: str, arguments: argparse.Namespace, *, count: int
) -> list[list[int]]:
    """Return one prompt to warm up and those to measure with, all of them different."""
    info = replica.check(model)
    input_tokens = arguments.input_tokens or 128
    output_tokens = arguments.output_tokens or 64
    if input_tokens + output_tokens > info.max_model_len:
        raise ConfigurationError(
            f"--input-tokens {input_tokens} and --output-tokens {output_tokens} exceed the "
            f"{info.max_model_len} tokens of {arguments.model!r}"
        )
    return random_prompts(count + 1, num_tokens=input_tokens, vocab_size=info.vocab_size)


def _from_options(arguments: argparse.Namespace) -> DeploymentFile:
    """Return a file of one model on one pool, all else as a file that says nothing has it."""
    return _validated(
        {
            "models": {
                _MODEL_NAME: {"source": arguments.model, **_given(arguments, MODEL_OPTIONS)}
            },
            "pools": {DEFAULT_POOL: _given(arguments, POOL_OPTIONS)},
        }
    )


def _from_file(path: Path, arguments: argparse.Namespace) -> DeploymentFile:
    """Return the file with the chosen model and its pool alone; given options are over it."""
    file = load_deployment_file(path)
    if arguments.model not in file.models:
        raise ConfigurationError(
            f"--model: {path} has no model {arguments.model!r}; it has: {', '.join(file.models)}"
        )
    content = file.model_dump(exclude_unset=True)
    model = content["models"][arguments.model]
    pool = file.models[arguments.model].pool
    return _validated(
        {
            "models": {arguments.model: {**model, **_given(arguments, MODEL_OPTIONS)}},
            "pools": {
                pool: {**content.get("pools", {}).get(pool, {}), **_given(arguments, POOL_OPTIONS)}
            },
        }
    )


def _given(arguments: argparse.Namespace, options: tuple[str, ...]) -> dict[str, Any]:
    values = {name: getattr(arguments, name) for name in options}
    return {name: value for name, value in values.items() if value is not None}


def _validated(content: dict[str, Any]) -> DeploymentFile:
    """Return the settings; a fault is one of the options'."""
    try:
        return DeploymentFile.model_validate(content)
    except ValidationError as error:
        faults = plain_faults(error, DeploymentFile)
        raise ConfigurationError(
            "\n".join(f"--{str(place[-1]).replace('_', '-')}: {text}" for place, text in faults)
        ) from None
