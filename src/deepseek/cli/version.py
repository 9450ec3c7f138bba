"""`deepseek version`: the versions that a bug report needs."""

import argparse
import platform

from deepseek import __version__
from deepseek.cli.arguments import Subparsers

_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "llguidance",
    "starlette",
    "uvicorn",
    "pydantic",
)


def register(commands: Subparsers) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "version",
        help="print the versions of deepseek and of what it runs on",
        description="Print the versions of deepseek, Python and the packages that matter.",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print one line per component; reads package metadata, imports none of them."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    print(f"deepseek {__version__}")
    print(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in _PACKAGES:
        try:
            print(f"{package} {installed(package)}")
        except PackageNotFoundError:
            print(f"{package} not installed")
    return 0
