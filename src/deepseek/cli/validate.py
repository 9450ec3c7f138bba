"""`deepseek validate`: check a deployment file without serving it."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from deepseek.cli.arguments import Subparsers


def register(commands: Subparsers) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "validate",
        help="check a deployment file and report every fault in it",
        description="Check a deployment file and report every fault with its line and remedy.",
    )
    parser.add_argument("-f", "--file", metavar="FILE", required=True, help="deployment file")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the file; a fault is an error with one line each."""
    from deepseek.deployment_file import load_deployment_file

    path = Path(arguments.file)
    deployment_file = load_deployment_file(path)
    pools = deployment_file.pool_settings()
    print(f"{path}: valid: {_count(deployment_file.models, 'model')} on {_count(pools, 'pool')}")
    return 0


def _count(things: Mapping[str, object], noun: str) -> str:
    plural = "" if len(things) == 1 else "s"
    return f"{len(things)} {noun}{plural} ({', '.join(things)})"
