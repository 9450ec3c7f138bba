"""`deepseek apply`: give a running server the live settings of a changed deployment file."""

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

from deepseek.cli.arguments import Subparsers, add_url_argument

_DURATIONS = ("max_wait_time", "deadline.ttft", "deadline.itl", "shedding.wait", "shedding.calm")


def register(commands: Subparsers) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "apply",
        help="change shares, QoS and precision of a running server, without a restart",
        description="Give a running server the shares, QoS and precision of a deployment file. "
        "Everything else in it must be as it is served; if not, what differs is listed and nothing "
        "changed.",
    )
    parser.add_argument("-f", "--file", metavar="FILE", required=True, help="deployment file")
    add_url_argument(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the file here, have the server apply it, and print what has changed."""
    from deepseek.deployment_file import load_deployment_file

    deployment_file = load_deployment_file(Path(arguments.file))
    # What the file leaves out is left to the server's defaults.
    body = deployment_file.model_dump(mode="json", exclude_unset=True)
    started_s = time.monotonic()
    changes = asyncio.run(_put(arguments.url, body))
    seconds = time.monotonic() - started_s
    for name in deployment_file.models:
        _print_model(name, [change for change in changes if change["model"] == name])
    print(f"applied in {seconds:.2f} s" if changes else "the server serves this file already")
    return 0


def _print_model(name: str, changes: list[dict[str, Any]]) -> None:
    if not changes:
        print(f"{name}: unchanged")
    for change in changes:
        setting = change["setting"]
        before, after = (_shown(value, setting) for value in (change["before"], change["after"]))
        print(f"{name}: {setting} {before} -> {after}")


def _shown(value: Any, setting: str) -> str:
    """Return a value as a file spells it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, int | float):
        return str(value)
    if setting.endswith(_DURATIONS):
        return f"{value:g}s" if value >= 1 or value == 0 else f"{value * 1000:g}ms"
    return f"{value * 100:g}%" if setting.endswith("reserved_share") else f"{value:g}"


async def _put(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    from deepseek.cli.http_client import HttpClient
    from deepseek.cli.served_models import administer

    with HttpClient(url, timeout_s=60.0) as client:
        changes: list[dict[str, Any]] = (
            await administer(client, "PUT", "/admin/deployment", body=body)
        )["data"]
        return changes
