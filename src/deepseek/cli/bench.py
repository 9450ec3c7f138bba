"""`deepseek bench`: load a server, or one engine without a server, and print what it feels like."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from deepseek.cli.arguments import (
    DEFAULT_URL,
    Subparsers,
    non_negative_float,
    positive_float,
    positive_int,
)
from deepseek.cli.output import write_text
from deepseek.core.errors import ConfigurationError

_REPLAY = ("speed", "max_requests", "max_input_tokens", "max_output_tokens")
_CLOSED_LOOP = ("concurrency", "requests", "input_tokens", "output_tokens", "prompt_file")
_SERVER = ("url", "task", "prompt_file", "ignore_eos", "temperature", "trace", *_REPLAY)
_ENGINE = ("file", "quantization", "speculation", "dtype", "device", "num_threads")


def register(commands: Subparsers) -> None:
    """Add the command's parser; an option without a value given is None, whatever its default."""
    parser = commands.add_parser(
        "bench",
        help="measure a running server, or one engine, under load",
        description="Send requests to a running OpenAI-compatible server and print time to first "
        "token, inter-token latency, throughput and errors. Without --trace, --concurrency "
        "requests are always under way; with it, requests arrive as they were recorded, whatever "
        "is still under way. With --engine, measure one model's engine in a worker process of its "
        "own, in token ids and without a server. Exits with 1 when no request succeeded.",
    )
    parser.add_argument(
        "--model",
        help="served model (default: the first of the task); with --engine a name of the catalogue "
        "or a model directory, with -f a model of the file",
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
        "--timeout", type=positive_float, default=600.0, help="seconds per request (default: 600)"
    )
    parser.add_argument("--json", metavar="OUT", help="also write the report to this file")
    _add_server_arguments(parser)
    _add_trace_arguments(parser)
    _add_engine_arguments(parser)
    parser.set_defaults(run=run)


def _add_server_arguments(parser: argparse.ArgumentParser) -> None:
    server = parser.add_argument_group("a running server")
    server.add_argument("--url", help=f"the running server (default: {DEFAULT_URL})")
    server.add_argument(
        "--task", choices=("chat", "embed", "classify"), help="what to ask for (default: chat)"
    )
    server.add_argument(
        "--prompt-file", metavar="FILE", help="take prompts from this file in turn, one per line"
    )
    server.add_argument(
        "--ignore-eos",
        action="store_true",
        default=None,
        help="ask for answers of full length (deepseek and vLLM know the field)",
    )
    server.add_argument(
        "--temperature", type=non_negative_float, help="of the chats' sampling (default: 0, greedy)"
    )


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


def _add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    engine = parser.add_argument_group(
        "one engine without a server",
        "What the options mean, and what is done without them, is said of the deployment file's "
        "settings of these names.",
    )
    engine.add_argument(
        "--engine", choices=("torch", "vllm", "auto"), help="which engine to start and measure"
    )
    engine.add_argument("--quantization", metavar="SCHEME", help="of the model's weights")
    engine.add_argument("--speculation", metavar="METHOD", help="how tokens are guessed ahead")
    engine.add_argument("--dtype", metavar="TYPE", help="number format of the weights")
    engine.add_argument("--device", help="cpu, cuda, cuda:N or auto")
    engine.add_argument("--num-threads", type=positive_int, help="compute threads on a CPU")
    engine.add_argument(
        "-f",
        "--file",
        metavar="FILE",
        help="deployment file with --model and its pool in it, for all other settings",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON."""
    import json

    _check_combination(arguments)
    if arguments.engine:
        from deepseek.cli.bench_engine import measure_engine

        report = measure_engine(arguments)
    else:
        from deepseek.cli.bench_server import measure_server

        report = measure_server(arguments)
    from deepseek.cli.load.table import print_report

    print_report(report)
    if arguments.json:
        write_text(Path(arguments.json), json.dumps(report.to_json(), indent=2) + "\n")
    return 0 if report.num_ok else 1


def _check_combination(arguments: argparse.Namespace) -> None:
    """Refuse options that would be ignored."""
    if arguments.engine:
        _refuse(arguments, _SERVER, "with --engine")
        if arguments.model is None:
            raise ConfigurationError("--engine needs --model: a catalogue name or a directory")
        return
    _refuse(arguments, _ENGINE, "without --engine")
    if arguments.trace:
        _refuse(arguments, _CLOSED_LOOP, "with --trace")
    else:
        _refuse(arguments, _REPLAY, "without --trace")
    if arguments.prompt_file:
        _refuse(arguments, ("input_tokens",), "with --prompt-file")


def _refuse(arguments: argparse.Namespace, names: Iterable[str], where: str) -> None:
    for name in names:
        if getattr(arguments, name) is not None:
            option = "--" + name.replace("_", "-")
            raise ConfigurationError(f"{option} has no effect {where}; leave it out")
