"""`deepseek serve`: serve what a deployment file says until interrupted."""

import argparse
import importlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek.cli.arguments import Subparsers, add_file_argument, port_number
from deepseek.core.errors import ConfigurationError

if TYPE_CHECKING:
    from types import ModuleType

    from deepseek.deployment_file import DeploymentFile

_LOG_LEVELS = ("debug", "info", "warning", "error")


def register(commands: Subparsers) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "serve",
        help="serve a deployment file through the OpenAI API",
        description="Serve a deployment file through the OpenAI API until interrupted (Ctrl-C or "
        "SIGTERM: running requests finish first).",
    )
    add_file_argument(parser, default="a built-in one with three small models")
    parser.add_argument("--host", help="address to listen on, over the file's gateway.host")
    parser.add_argument(
        "--port", type=port_number, help="port to listen on, over the file's gateway.port"
    )
    parser.add_argument(
        "--log-level", choices=_LOG_LEVELS, default="info", help="default: %(default)s"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve; returns when the platform has shut down."""
    from deepseek.cli.progress import TerminalProgress
    from deepseek.deployment_file import load_deployment_file, quickstart_path

    path = Path(arguments.file) if arguments.file else quickstart_path()
    written = load_deployment_file(path)
    deployment_file = listen_on(written, host=arguments.host, port=arguments.port)
    app = import_app()
    base_dir = path.resolve().parent if arguments.file else Path.cwd()
    logging.basicConfig(
        level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    code: int = app.run(
        deployment_file,
        base_dir=base_dir,
        progress=TerminalProgress(),
        announce=lambda text: print(text, flush=True),
        log_level=arguments.log_level,
        written=written,
    )
    return code


def import_app() -> "ModuleType":
    """Return `deepseek.app`; raises `ConfigurationError` where an extra is not installed."""
    try:
        return importlib.import_module("deepseek.app")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("deepseek"):
            raise
        package = error.name.partition(".")[0]
        raise ConfigurationError(
            f"serving needs the package {package!r}; install the extras with: "
            "pip install 'deepseek-platform[engine,gateway,convert]'"
        ) from None


def listen_on(
    deployment_file: "DeploymentFile", *, host: str | None, port: int | None
) -> "DeploymentFile":
    """Return the file with another address; None keeps the file's own."""
    wanted = {"host": host, "port": port}
    update = {name: value for name, value in wanted.items() if value is not None}
    gateway = deployment_file.gateway.model_copy(update=update)
    return deployment_file.model_copy(update={"gateway": gateway})
