"""The command `deepseek` itself: finds the command's module and turns errors into exit codes."""

import argparse
import os
import sys
from collections.abc import Sequence

from deepseek import __version__
from deepseek.cli import (
    adapters,
    apply,
    bench,
    chat,
    models,
    quantize,
    schema,
    serve,
    simulate,
    validate,
    version,
    why,
)
from deepseek.core.errors import DeepseekError

_EPILOG = """\
exit codes: 0 done, 1 the command ran and found a fault, 2 wrong input, 130 interrupted.
Documentation: docs/cli.md and docs/deployment-file.md."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each parsed namespace has `run`, the command itself."""
    parser = argparse.ArgumentParser(
        prog="deepseek",
        description="Serve many models for many teams from one YAML file, through the OpenAI API.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"deepseek {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (
        serve,
        validate,
        apply,
        why,
        simulate,
        schema,
        models,
        quantize,
        adapters,
        chat,
        bench,
        version,
    ):
        module.register(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code; an error is one message, never a traceback."""
    try:
        arguments = build_parser().parse_args(argv)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except DeepseekError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted; Python must not complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


if __name__ == "__main__":
    sys.exit(main())
