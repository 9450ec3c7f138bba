"""`deepseek bench`: put a server under load and print what its clients would feel."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek.cli.arguments import (
    Subparsers,
    add_url_argument,
    non_negative_float,
    positive_float,
    positive_int,
)
from deepseek.cli.output import write_text
from deepseek.core.errors import ConfigurationError

if TYPE_CHECKING:
    import asyncio

    from deepseek.cli.load.plan import LoadPlan, PlannedRequest
    from deepseek.cli.load.prompts import TokenScale
    from deepseek.cli.load.report import LoadReport

_SERVED_TASKS = {"chat": "generate", "embed": "embed", "classify": "classify"}


def register(commands: Subparsers) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "bench",
        help="measure a running server under load",
        description="Send requests to a running OpenAI-compatible server and print time to first "
        "token, inter-token latency, throughput and errors. Without --trace, --concurrency "
        "requests are always under way; with it, requests arrive as they were recorded, whatever "
        "is still under way. Exits with 1 when no request succeeded.",
    )
    add_url_argument(parser)
    parser.add_argument("--model", help="served model (default: the first of the task)")
    parser.add_argument(
        "--task", choices=_SERVED_TASKS, default="chat", help="what to ask for (default: chat)"
    )
    parser.add_argument(
        "--concurrency", type=positive_int, help="requests under way at once (default: 8)"
    )
    parser.add_argument("--requests", type=positive_int, help="requests in all (default: 64)")
    parser.add_argument(
        "--input-tokens", type=positive_int, help="tokens of each prompt (default: 128)"
    )
    parser.add_argument(
        "--output-tokens", type=positive_int, help="longest answer in tokens (default: 64)"
    )
    parser.add_argument(
        "--prompt-file", metavar="FILE", help="take prompts from this file in turn, one per line"
    )
    parser.add_argument(
        "--ignore-eos",
        action="store_true",
        help="ask for answers of full length (deepseek and vLLM know the field)",
    )
    parser.add_argument(
        "--temperature",
        type=non_negative_float,
        default=0.0,
        help="of the chats' sampling (default: 0, greedy)",
    )
    parser.add_argument(
        "--timeout", type=positive_float, default=600.0, help="seconds per request (default: 600)"
    )
    _add_trace_arguments(parser)
    parser.add_argument("--json", metavar="OUT", help="also write the report to this file")
    parser.set_defaults(run=run)


def _add_trace_arguments(parser: argparse.ArgumentParser) -> None:
    trace = parser.add_argument_group("replaying a trace")
    trace.add_argument("--trace", metavar="FILE", help="Azure LLM inference CSV or Mooncake JSONL")
    trace.add_argument(
        "--speed", type=positive_float, help="times as fast as recorded (default: 1)"
    )
    trace.add_argument("--max-requests", type=positive_int, help="only the first so many rows")
    trace.add_argument(
        "--max-input-tokens",
        type=positive_int,
        help="scale all prompts so that the longest has so many tokens",
    )
    trace.add_argument(
        "--max-output-tokens",
        type=positive_int,
        help="scale all answers so that the longest has so many tokens",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON."""
    import asyncio
    import json

    _check_combination(arguments)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        report = runner.run(_measure(arguments))
    from deepseek.cli.load.table import print_report

    print_report(report)
    if arguments.json:
        write_text(Path(arguments.json), json.dumps(report.to_json(), indent=2) + "\n")
    return 0 if report.num_ok else 1


def _check_combination(arguments: argparse.Namespace) -> None:
    """Refuse options that would be ignored."""
    closed = ("concurrency", "requests", "input_tokens", "output_tokens", "prompt_file")
    replay = ("speed", "max_requests", "max_input_tokens", "max_output_tokens")
    wrong, reason = (closed, "with") if arguments.trace else (replay, "without")
    given = [name for name in wrong if getattr(arguments, name) is not None]
    if given:
        option = "--" + given[0].replace("_", "-")
        raise ConfigurationError(f"{option} has no effect {reason} --trace; leave it out")
    if arguments.prompt_file and arguments.input_tokens:
        raise ConfigurationError("--input-tokens has no effect with --prompt-file; leave it out")


async def _measure(arguments: argparse.Namespace) -> "LoadReport":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from deepseek.cli.http_client import HttpClient
    from deepseek.cli.load.answer import RequestRecord
    from deepseek.cli.load.probe import probe
    from deepseek.cli.load.runner import run_load
    from deepseek.cli.served_models import choose_model

    with HttpClient(arguments.url, timeout_s=arguments.timeout) as client:
        served_task = _SERVED_TASKS[arguments.task]
        model = await choose_model(client, model=arguments.model, task=served_task)
        scale = await probe(client, task=arguments.task, model=model)
    plan = _plan(arguments, scale)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"{arguments.task} {model}", total=len(plan.requests))

        def advance(record: RequestRecord) -> None:
            progress.advance(bar)

        return await run_load(
            plan, url=arguments.url, model=model, timeout_s=arguments.timeout, on_done=advance
        )


def _plan(arguments: argparse.Namespace, scale: "TokenScale") -> "LoadPlan":
    from deepseek.cli.load.plan import LoadPlan, LoadTask

    extra = {}
    if arguments.task == "chat":
        extra["temperature"] = arguments.temperature
        if arguments.ignore_eos:
            extra["ignore_eos"] = True
    return LoadPlan(
        requests=_trace_plan(arguments, scale) if arguments.trace else _loop(arguments, scale),
        task=LoadTask(arguments.task),
        concurrency=None if arguments.trace else arguments.concurrency or 8,
        extra_body=extra,
    )


def _trace_plan(arguments: argparse.Namespace, scale: "TokenScale") -> "list[PlannedRequest]":
    from deepseek.cli.load.plan import trace_requests
    from deepseek.cli.load.traces import BLOCK_TOKENS, read_trace, scale_trace

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


def _loop(arguments: argparse.Namespace, scale: "TokenScale") -> "list[PlannedRequest]":
    from deepseek.cli.load.plan import prompt_requests, synthetic_requests

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


def _loop_factory() -> "type[asyncio.AbstractEventLoop] | None":
    """Prefer uvloop where it is installed: it takes a quarter off the cost of a token."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop
