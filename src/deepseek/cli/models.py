"""`deepseek models`: what can be served by name, and the model cache on this machine."""

import argparse
import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deepseek.cli.arguments import Subparsers
from deepseek.cli.progress import TerminalProgress
from deepseek.core.errors import ConfigurationError, CorruptWeights, ModelSourceError
from deepseek.weights.acquisition import acquire
from deepseek.weights.cache import CachedModel, ModelCache
from deepseek.weights.catalogue import CATALOGUE, CatalogueEntry
from deepseek.weights.prepared.collection import collect_prepared
from deepseek.weights.storage import in_mib
from deepseek.weights.store.checking import StoreChecker
from deepseek.weights.store.collection import collect_garbage
from deepseek.weights.store.importing import SealingKey
from deepseek.weights.store.keys.base import KeySource
from deepseek.weights.store.keys.registry import make_key_source
from deepseek.weights.store.manifest import has_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """One row of `deepseek models list`."""

    name: str
    task: str | None
    state: str
    """`ready`, `linked` (a directory elsewhere), `broken`, or `available` (not downloaded)."""
    size_bytes: int
    """On disk; of an available model, what is to be downloaded."""
    path: str | None
    licence: str | None
    description: str | None
    error: str | None = None


def register(commands: Subparsers) -> None:
    """Add the command's parser."""
    models = commands.add_parser(
        "models",
        help="list, add, remove and check models",
        description="Models that can be served by name. They live in $DEEPSEEK_HOME/models "
        "(default ~/.cache/deepseek/models).",
    )
    actions = models.add_subparsers(required=True, metavar="COMMAND")
    listing = actions.add_parser("list", help="show the catalogue and the model cache")
    listing.add_argument("--json", action="store_true", help="print JSON instead of a table")
    listing.set_defaults(run=list_models)
    adding = actions.add_parser(
        "add",
        help="fetch a catalogue model, or register a model on disk",
        description="Without --path: download and convert the catalogue model NAME. With --path: "
        "register a Hugging Face model directory as NAME, or convert a .gguf file. With --chunks "
        "as well: import its weights into the chunk store ($DEEPSEEK_HOME/chunks), where models "
        "share what they have in common; the directory is not needed afterwards. An import that "
        "was broken off goes on where it ended when the same command is given again.",
    )
    adding.add_argument("name", metavar="NAME")
    adding.add_argument("--path", type=Path, help="a model directory or a .gguf file")
    how = adding.add_mutually_exclusive_group()
    how.add_argument("--copy", action="store_true", help="copy the directory, do not link it")
    how.add_argument(
        "--chunks", action="store_true", help="import the weights into the chunk store"
    )
    adding.add_argument(
        "--seal-with",
        metavar="SOURCE:WHERE",
        type=_key_source,
        help="with --chunks: encrypt the weights with the key that is in file:PATH, in env:NAME, a "
        "variable, or printed by 'command:PROGRAM ...' (64 hexadecimal digits or base64)",
    )
    adding.add_argument(
        "--key-id",
        metavar="ID",
        help="with --seal-with: what the key is called when it is asked for; default: NAME",
    )
    adding.set_defaults(run=add_model)
    removing = actions.add_parser(
        "remove", help="remove a model from the cache; a registered directory itself stays"
    )
    removing.add_argument("name", metavar="NAME")
    removing.set_defaults(run=remove_model)
    verifying = actions.add_parser(
        "verify",
        help="check the chunks of models against their digests",
        description="Reads every chunk of NAME, or of all models in the chunk store, and compares "
        "it with its digest. Exit code 1 where one differs, is missing or is cut off.",
    )
    verifying.add_argument("name", metavar="NAME", nargs="?")
    verifying.set_defaults(run=verify_models)
    collecting = actions.add_parser(
        "gc",
        help="free the chunks and prepared weights that no model uses",
        description="Removes the chunks that no model uses any more, those of imports that were "
        "broken off included, and makes the packs smaller; and prepared weights "
        "($DEEPSEEK_HOME/prepared) of models that are gone or have changed. Servers may go on; "
        "running imports are waited for.",
    )
    collecting.set_defaults(run=collect_chunks)


def list_models(arguments: argparse.Namespace) -> int:
    """Print the catalogue and the cache."""
    rows = _rows(ModelCache.default())
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("NAME", "TASK", "STATE"):
        table.add_column(column, no_wrap=True)
    table.add_column("SIZE", justify="right", no_wrap=True)
    table.add_column("WHERE OR WHAT", overflow="fold")
    for row in rows:
        where = row.error or row.path or f"{row.description} ({row.licence})"
        size = f"{row.size_bytes / 2**20:,.0f} MiB"
        table.add_row(row.name, row.task or "-", row.state, size, where)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 1_000  # one line per model for grep and awk
    console.print(table)
    return 0


def add_model(arguments: argparse.Namespace) -> int:
    """Fetch, link, copy or convert one model."""
    name: str = arguments.name
    path: Path | None = arguments.path
    cache = ModelCache.default()
    if path is None and name not in CATALOGUE:
        raise ModelSourceError(
            f"no model {name!r} in the catalogue ({', '.join(CATALOGUE)}); name one of these, or "
            "give --path"
        )
    if path is None and arguments.copy:
        raise ModelSourceError("--copy needs --path, the directory to copy")
    if path is None and arguments.chunks:
        raise ModelSourceError("--chunks needs --path, the directory to import")
    seal = _sealing_key(arguments)
    with TerminalProgress() as progress:
        if path is not None and arguments.chunks:
            place = cache.add_chunks(name, path, seal=seal, progress=progress)
        elif path is not None:
            place = cache.add_path(name, path, copy=arguments.copy, progress=progress)
        else:
            place = acquire(CATALOGUE[name], cache=cache, progress=progress)
    print(f"{name}: {place}")
    return 0


def remove_model(arguments: argparse.Namespace) -> int:
    """Remove one model from the cache."""
    cache = ModelCache.default()
    is_chunked = has_manifest(cache.path(arguments.name))
    cache.remove(arguments.name)
    print(f"removed {arguments.name}")
    if is_chunked:
        print("its chunks stay until `deepseek models gc` frees those that no other model uses")
    return 0


def verify_models(arguments: argparse.Namespace) -> int:
    """Check the chunks of one model or of all; 1 where any is at fault."""
    cache = ModelCache.default()
    if arguments.name is not None and not has_manifest(cache.path(arguments.name)):
        raise ModelSourceError(
            f"no model {arguments.name!r} in the chunk store: only models added with --chunks "
            "have digests to check"
        )
    names = [arguments.name] if arguments.name is not None else _chunked(cache)
    num_faulty = 0
    with TerminalProgress() as progress:
        checker = StoreChecker(progress)
        for name in names:
            faults = _faults(checker, name, cache.path(name))
            num_faulty += bool(faults)
            print("\n".join(faults) or f"{name}: intact", flush=True)
    if not names:
        print("no model is in the chunk store")
    return 1 if num_faulty else 0


def collect_chunks(arguments: argparse.Namespace) -> int:
    """Remove what no model uses from the chunk store and from the prepared weights."""
    with TerminalProgress() as progress:
        cache = ModelCache.default()
        chunks = collect_garbage(cache.chunk_store, progress=progress)
        prepared = collect_prepared(cache.prepared)
    print(f"removed {chunks.num_chunks} chunks, freed {in_mib(chunks.freed_bytes)}")
    if prepared.freed_bytes:
        print(
            f"removed {prepared.num_files} files of prepared weights, "
            f"freed {in_mib(prepared.freed_bytes)}"
        )
    return 0


def _key_source(text: str) -> KeySource:
    """Return the source that SOURCE:WHERE names, as `models.NAME.key` would."""
    source, _, where = text.partition(":")
    try:
        return make_key_source(source, shlex.split(where) if source == "command" else where)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(error.message) from error


def _sealing_key(arguments: argparse.Namespace) -> SealingKey | None:
    keys: KeySource | None = arguments.seal_with
    if keys is None and arguments.key_id is not None:
        raise ModelSourceError("--key-id needs --seal-with, which says where the key is")
    if keys is None:
        return None
    if not arguments.chunks:
        raise ModelSourceError("--seal-with needs --chunks: sealed weights are in the chunk store")
    key_id: str = arguments.key_id or arguments.name
    return SealingKey(key_id=key_id, key=keys(key_id))


def _chunked(cache: ModelCache) -> list[str]:
    return [model.name for model in cache.list() if has_manifest(cache.path(model.name))]


def _faults(checker: StoreChecker, name: str, directory: Path) -> list[str]:
    """Return one line per fault."""
    try:
        faults = checker.check(name, directory)
    except CorruptWeights as error:
        return [f"{name}: {error.message}"]
    return [
        f"{name}: tensor {', '.join(fault.tensors) or '(none)'}: {fault.message}"
        for fault in faults
    ]


def _rows(cache: ModelCache) -> list[ListedModel]:
    cached = {model.name: model for model in cache.list()}
    names = [*CATALOGUE, *sorted(set(cached) - set(CATALOGUE))]
    return [_row(name, CATALOGUE.get(name), cached.get(name)) for name in names]


def _row(name: str, entry: CatalogueEntry | None, model: CachedModel | None) -> ListedModel:
    licence = entry.licence if entry else None
    description = entry.description if entry else None
    if model is None:
        assert entry is not None  # noqa: S101 - a name comes from one of the two
        return ListedModel(
            name=name,
            task=entry.task,
            state="available",
            size_bytes=entry.download_bytes,
            path=None,
            licence=licence,
            description=description,
        )
    state = "linked" if model.is_link else "ready"
    return ListedModel(
        name=name,
        task=model.task,
        state="broken" if model.error else state,
        size_bytes=model.size_bytes,
        path=str(model.path),
        licence=licence,
        description=description,
        error=model.error,
    )
