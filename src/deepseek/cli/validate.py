"""`deepseek validate`: check a deployment file without serving it."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek.cli.arguments import Subparsers
from deepseek.core.errors import ConfigurationError, DeploymentFileError

if TYPE_CHECKING:
    from deepseek.deployment_file import DeploymentFile


def register(commands: Subparsers) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "validate",
        help="check a deployment file and report every fault in it",
        description="Check a deployment file and report every fault with its line and remedy.",
    )
    parser.add_argument("-f", "--file", metavar="FILE", required=True, help="deployment file")
    parser.add_argument(
        "--sources",
        action="store_true",
        help="check also that each model's source is there and can be served; downloads nothing",
    )
    parser.add_argument(
        "--elsewhere",
        action="store_true",
        help="the file is for another machine: do not ask whether GPUs with reservations are here",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the file; a fault is an error with one line each."""
    from deepseek.deployment_file import load_deployment_file

    path = Path(arguments.file)
    deployment_file = load_deployment_file(path)
    if not arguments.elsewhere:
        _check_gpus(deployment_file, path)
    if arguments.sources:
        _check_sources(deployment_file, base_dir=path.resolve().parent)
    models = _count(deployment_file.models, "model")
    print(f"{path}: valid: {models} on {_count(deployment_file.pool_settings(), 'pool')}")
    return 0


def _check_gpus(deployment_file: "DeploymentFile", path: Path) -> None:
    """Raise `DeploymentFileError` where a part of a GPU is reserved that is not there."""
    from deepseek.core.yaml_document import Fault, read_yaml
    from deepseek.serving.reserved_gpus import absent_gpus

    absent = absent_gpus(
        deployment_file.models, deployment_file.pool_settings(), base_dir=path.resolve().parent
    )
    if absent:
        document = read_yaml(path.read_text("utf-8-sig"))
        places = [("pools", pool, "device") for pool in absent]
        faults = [
            Fault(
                line=document.line_of(place),
                path=place,
                message=f"{absent[place[1]]}, or pass --elsewhere if another machine will serve it",
            )
            for place in places
        ]
        raise DeploymentFileError("\n".join(f"{path}:{fault.line}: {fault}" for fault in faults))


def _check_sources(deployment_file: "DeploymentFile", *, base_dir: Path) -> None:
    """Print what each model is; raises `DeploymentFileError` with one line per bad source."""
    from deepseek.cli.serve import import_app
    from deepseek.weights.cache import ModelCache
    from deepseek.weights.catalogue import CATALOGUE
    from deepseek.weights.progress import SilentProgress

    app = import_app()
    cache = ModelCache.default()
    faults: list[str] = []
    try:
        deployment_file = app.find_interpreters(deployment_file, base_dir=base_dir)
    except ConfigurationError as error:
        faults.append(error.message)
    pools = deployment_file.pool_settings()
    for name, settings in deployment_file.models.items():
        if settings.source in CATALOGUE and settings.source not in cache:
            print(f"models.{name}: in the catalogue; downloaded when first served")
            continue
        try:
            directory = app.find_model(
                name,
                settings,
                base_dir=base_dir,
                progress=SilentProgress(),
                python=pools[settings.pool].python,
            )
            directory.validate_weights()
        except ConfigurationError as error:
            faults.append(error.message)
        else:
            print(f"models.{name}: {directory.task}, {directory.architecture}, {directory.path}")
    if faults:
        raise DeploymentFileError("\n".join(faults))


def _count(things: Mapping[str, object], noun: str) -> str:
    plural = "" if len(things) == 1 else "s"
    return f"{len(things)} {noun}{plural} ({', '.join(things)})"
