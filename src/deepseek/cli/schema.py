"""`deepseek schema`: the JSON Schema of the deployment file, for editors."""

import argparse
import json
from pathlib import Path

from deepseek.cli.arguments import Subparsers
from deepseek.cli.output import write_text


def register(commands: Subparsers) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "schema",
        help="print the JSON Schema of the deployment file",
        description="Print the JSON Schema of the deployment file. An editor with a YAML language "
        "server completes and checks a file that begins with: "
        "# yaml-language-server: $schema=schema.json",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write to this file instead")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print or write the schema."""
    from deepseek.deployment_file import deployment_file_schema

    text = json.dumps(deployment_file_schema(), indent=2) + "\n"
    if arguments.output is None:
        print(text, end="")
    else:
        write_text(Path(arguments.output), text)
    return 0
