"""Compiles the kernels on first use, once per source, compiler and processor.

`python -m deepseek.native.build` does it ahead of time. Leaves loading to `library`.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from deepseek.weights.cache import ModelCache

_SOURCES = Path(__file__).parent / "src"
_FLAGS = (
    *("-std=c++17", "-O2", "-march=native", "-fopenmp", "-fPIC", "-fvisibility=hidden"),
    # Vector code selects between values it has computed: no flag to keep, no errno to set.
    *("-fno-math-errno", "-fno-trapping-math"),
)
_COMPILE_TIMEOUT_S = 300


class BuildError(Exception):
    """The kernels cannot be had on this machine; the text says why."""


def build_library() -> Path:
    """Return the compiled library, compiling it where no other process has. Raises `BuildError`.

    Safe to call from several processes at once: one compiles, the others wait for it.
    """
    flags = _processor_flags()
    compiler = _compiler()
    openmp = _loaded_openmp()
    directory = ModelCache.default().root / "native"
    library = directory / f"{_key(compiler, openmp, flags)}.so"
    if library.exists():
        return library
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not library.exists():
                _compile(compiler, openmp, library)
    except OSError as error:
        raise BuildError(f"{directory} cannot be written: {error}") from error
    return library


def _processor_flags() -> str:
    machine = platform.machine()
    if sys.platform != "linux" or machine != "x86_64":
        raise BuildError(f"the kernels are for x86-64 Linux, this is {machine} {sys.platform}")
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            if {"avx2", "fma"} <= set(line.split()):
                return line
            break
    raise BuildError("the processor has no AVX2")


def _compiler() -> str:
    # GCC: clang's OpenMP calls a runtime of its own, which torch has not loaded.
    for name in (os.environ.get("CXX"), "g++", "c++"):
        path = shutil.which(name) if name else None
        if path is not None:
            return path
    raise BuildError("there is no C++ compiler (CXX, g++, c++)")


def _loaded_openmp() -> Path:
    """Return the OpenMP runtime that torch has loaded.

    The kernels are linked against that very file: a second runtime in the process would be a second
    pool of spinning threads on the same cores.
    """
    torch.get_num_threads()  # the import has loaded it
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = Path(line.split(maxsplit=5)[-1])
        if path.name.startswith(("libgomp", "libiomp5", "libomp")):
            return path
    raise BuildError("torch has loaded no OpenMP runtime")


def _key(compiler: str, openmp: Path, processor_flags: str) -> str:
    digest = hashlib.sha256()
    for source in sorted(_SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    version = _run([compiler, "--version"])
    for text in (*_FLAGS, compiler, version, str(openmp), processor_flags):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:32]


def _compile(compiler: str, openmp: Path, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".build-") as temporary:
        objects = []
        for source in sorted(_SOURCES.glob("*.cpp")):
            objects.append(f"{temporary}/{source.stem}.o")
            _run([compiler, *_FLAGS, "-c", str(source), "-o", objects[-1]])
        built = Path(temporary) / library.name
        # Without -fopenmp: it would add the compiler's own runtime.
        _run([compiler, "-shared", *objects, str(openmp), "-o", str(built)])
        built.replace(library)


def _run(command: list[str]) -> str:
    try:
        result = subprocess.run(  # noqa: S603
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=_COMPILE_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if result.returncode:
        raise BuildError(f"{' '.join(command)} failed: {result.stderr.strip()[-2000:]}")
    return result.stdout


if __name__ == "__main__":
    try:
        print(build_library())  # noqa: T201
    except BuildError as reason:
        # Never required: the engine falls back to torch's own operations.
        print(f"no native kernels: {reason}")  # noqa: T201
