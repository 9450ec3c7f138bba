"""Measures a running server: what `deepseek bench` does without `--engine`."""

import argparse
import asyncio
from pathlib import Path

from deepseek.cli.arguments import DEFAULT_URL
from deepseek.cli.http_client import HttpClient
from deepseek.cli.load.event_loop import loop_factory
from deepseek.cli.load.plan import (
    LoadPlan,
    LoadTask,
    PlannedRequest,
    prompt_requests,
    synthetic_requests,
    trace_requests,
)
from deepseek.cli.load.probe import probe
from deepseek.cli.load.prompts import TokenScale
from deepseek.cli.load.report import LoadReport
from deepseek.cli.load.runner import run_load
from deepseek.cli.load.traces import BLOCK_TOKENS, read_trace, scale_trace
from deepseek.cli.progress import counting_bar
from deepseek.cli.served_models import choose_model
from deepseek.core.errors import ConfigurationError

SERVED_TASKS = {"chat": "generate", "embed": "embed", "classify": "classify"}
"""From `--task` to the task that the server's model must have."""


def measure_server(arguments: argparse.Namespace) -> LoadReport:
    """Send the load that the arguments describe; raises errors of `core.errors`."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_measure(arguments))


async def _measure(arguments: argparse.Namespace) -> LoadReport:
    url, task = arguments.url or DEFAULT_URL, arguments.task or "chat"
    with HttpClient(url, timeout_s=arguments.timeout) as client:
        model = await choose_model(client, model=arguments.model, task=SERVED_TASKS[task])
        scale = await probe(client, task=task, model=model)
    plan = _plan(arguments, LoadTask(task), scale)
    with counting_bar(f"{task} {model}", total=len(plan.requests)) as advance:
        return await run_load(
            plan,
            url=url,
            model=model,
            timeout_s=arguments.timeout,
            on_done=lambda record: advance(),
        )


def _plan(arguments: argparse.Namespace, task: LoadTask, scale: TokenScale) -> LoadPlan:
    extra = {}
    if task is LoadTask.CHAT:
        extra["temperature"] = arguments.temperature or 0.0
        if arguments.ignore_eos:
            extra["ignore_eos"] = True
    return LoadPlan(
        requests=_trace_plan(arguments, scale) if arguments.trace else _loop(arguments, scale),
        task=task,
        concurrency=None if arguments.trace else arguments.concurrency or 8,
        extra_body=extra,
    )


def _trace_plan(arguments: argparse.Namespace, scale: TokenScale) -> list[PlannedRequest]:
    recorded = read_trace(Path(arguments.trace), max_rows=arguments.max_requests)
    rows = scale_trace(
        recorded,
        speed=arguments.speed or 1.0,
        max_input_tokens=arguments.max_input_tokens,
        max_output_tokens=arguments.max_output_tokens,
    )
    longest = max(range(len(rows)), key=lambda i: recorded[i].input_tokens)
    shrink = rows[longest].input_tokens / max(1, recorded[longest].input_tokens)
    return trace_requests(rows, scale=scale, block_tokens=BLOCK_TOKENS * shrink)


def _loop(arguments: argparse.Namespace, scale: TokenScale) -> list[PlannedRequest]:
    count = arguments.requests or 64
    output_tokens = arguments.output_tokens or 64
    if arguments.prompt_file:
        prompts = _read_prompts(Path(arguments.prompt_file))
        return prompt_requests(prompts, count=count, output_tokens=output_tokens)
    return synthetic_requests(
        count=count,
        input_tokens=arguments.input_tokens or 128,
        output_tokens=output_tokens,
        scale=scale,
    )


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigurationError(f"--prompt-file: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"--prompt-file: {path}: is not UTF-8 text") from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise ConfigurationError(f"--prompt-file: {path}: holds no prompts; write one per line")
    return prompts
