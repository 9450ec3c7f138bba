"""Builds in processes of their own, each test with a cache of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek.weights.child_process import environment_of_own_modules

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_RUN = """
import logging, os, torch
logging.basicConfig()
from deepseek.engine.ops.native import cpu_ops
print(cpu_ops().name, cpu_ops().name)
x, weight = torch.ones(2, 64), torch.ones(64)
print(cpu_ops().rms_norm(x, weight, 0.0).sum().item())
torch.mm(torch.ones(400, 400), torch.ones(400, 400))
for line in open("/proc/self/maps"):
    if "omp" in line.rsplit("/", 1)[-1] and "r-xp" in line:
        print("runtime", line.split()[-1])
"""


def start(home: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _RUN],
        env={
            **os.environ,
            **environment_of_own_modules(),
            "DEEPSEEK_HOME": str(home),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[list[str], str]:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out.splitlines(), err


def test_processes_that_start_together_build_once_and_share_torchs_openmp(tmp_path: Path) -> None:
    for lines, _ in map(finish, [start(tmp_path), start(tmp_path)]):
        if lines[0] == "reference reference":
            pytest.skip("this machine cannot build the kernels")
        assert lines[:2] == ["native native", "128.0"]
        runtimes = [line for line in lines if line.startswith("runtime")]
        assert len(runtimes) == 1
        assert "torch" in runtimes[0]
    assert len(list((tmp_path / "native").glob("*.so"))) == 1
    assert not list((tmp_path / "native").glob(".build-*"))


def test_without_a_compiler_torchs_operations_run_and_one_warning_says_so(tmp_path: Path) -> None:
    lines, err = finish(start(tmp_path, PATH="", CXX=""))
    assert lines[:2] == ["reference reference", "128.0"]
    assert err.count("no native CPU kernels") == 1
    assert "there is no C++ compiler" in err


def test_a_compiler_that_fails_is_reported_not_hidden(tmp_path: Path) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho no such target >&2\nexit 1\n'
    )
    compiler.chmod(0o755)
    lines, err = finish(start(tmp_path, CXX=str(compiler)))
    assert lines[0] == "reference reference"
    assert "no such target" in err
    assert not list((tmp_path / "native").glob("*.so"))


def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.write_text("not a directory")
    lines, err = finish(start(home))
    assert lines[0] == "reference reference"
    assert "cannot be written" in err
