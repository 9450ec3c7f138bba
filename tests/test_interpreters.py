"""A pool's own Python: found, refused, and a worker running under it."""

import json
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from deepseek import app
from deepseek.cli.main import main
from deepseek.core.errors import ConfigurationError, UnsupportedModel
from deepseek.core.requests import Task
from deepseek.core.wire import ModelSpec, Ready, WorkerSpec
from deepseek.deployment_file import DeploymentFile
from deepseek.serving.settings import ModelSettings
from deepseek.serving.worker_process import WorkerDied, WorkerLauncher, WorkerProcess
from deepseek.weights.progress import SilentProgress


async def _launched(spec: WorkerSpec) -> WorkerProcess:
    return await WorkerLauncher(spec.python).launch(spec)


def interpreter(path: Path, *options: str) -> Path:
    """A program that is this interpreter, started with `options`."""
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {" ".join(options)} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def deployment(python: str) -> DeploymentFile:
    return DeploymentFile.model_validate(
        {"models": {"m": {"source": "x", "pool": "p"}}, "pools": {"p": {"python": python}}}
    )


def worker_spec(python: Path, models: list[ModelSpec]) -> WorkerSpec:
    return WorkerSpec(
        pool="p", socket_path="", device="cpu", models=models, num_threads=1, python=str(python)
    )


def test_a_relative_path_starts_at_the_deployment_file(tmp_path: Path) -> None:
    interpreter(tmp_path / "python")
    found = app.find_interpreters(deployment("python"), base_dir=tmp_path)
    assert found.pools["p"].python == str(tmp_path / "python")


def test_an_interpreter_of_a_virtual_environment_keeps_its_path(tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    found = app.find_interpreters(deployment(str(link)), base_dir=Path("/"))
    assert found.pools["p"].python == str(link)


@pytest.mark.parametrize("kind", ["missing", "folder", "not executable"])
def test_what_cannot_be_run_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "python"
    if kind == "folder":
        path.mkdir()
    elif kind == "not executable":
        path.write_text("")
    with pytest.raises(ConfigurationError, match=r"pools\.p\.python: .*bin/python"):
        app.find_interpreters(deployment("python"), base_dir=tmp_path)


def test_validate_names_a_missing_interpreter(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "deployment.yaml"
    file.write_text(
        f"models: {{m: {{source: {tiny_llama_dir}, pool: p}}}}\n"
        "pools: {p: {python: nowhere/bin/python}}\n"
    )
    assert main(["validate", "-f", str(file), "--sources"]) == 2
    assert f"pools.p.python: {tmp_path}/nowhere/bin/python" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("engine", "python", "passes"),
    [
        ("vllm", None, True),
        ("auto", "/opt/vllm/bin/python", True),
        ("torch", "/opt/vllm/bin/python", False),
    ],
)
def test_another_engines_family_passes_where_that_engine_may_run_it(
    tiny_llama_dir: Path, tmp_path: Path, engine: Any, python: str | None, passes: bool
) -> None:
    path = Path(shutil.copytree(tiny_llama_dir, tmp_path / "m"))
    config = json.loads((path / "config.json").read_text())
    config.update(architectures=["GPTNeoXForCausalLM"], model_type="gpt_neox")
    (path / "config.json").write_text(json.dumps(config))
    settings = ModelSettings(source=str(path), engine=engine)

    def find() -> Any:
        return app.find_model(
            "m", settings, base_dir=tmp_path, progress=SilentProgress(), python=python
        )

    if passes:
        assert find().architecture == "GPTNeoXForCausalLM"
    else:
        with pytest.raises(UnsupportedModel, match=r"models\.m"):
            find()


def test_an_encoder_on_vllm_is_refused(tiny_bert_dir: Path, tmp_path: Path) -> None:
    settings = ModelSettings(source=str(tiny_bert_dir), engine="vllm")
    with pytest.raises(ConfigurationError, match=r"models\.m\.engine.*embed"):
        app.find_model("m", settings, base_dir=tmp_path, progress=SilentProgress())


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_worker_runs_under_an_interpreter_that_does_not_have_the_package(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # -S: no site-packages, so neither an installed package nor the link of a checkout; what the
    # worker itself needs is put back by name.
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for name in os.listdir(os.path.dirname(os.path.dirname(pytest.__file__))):
        if "deepseek" not in name:
            (libraries / name).symlink_to(Path(pytest.__file__).parents[1] / name)
    monkeypatch.setenv("PYTHONPATH", str(libraries))
    model = ModelSpec(name="m", path=str(tiny_llama_dir), task=Task.GENERATE, dtype="float32")
    worker = await _launched(worker_spec(interpreter(tmp_path / "python", "-S"), [model]))
    try:
        ready = await anext(aiter(worker.events()))
    finally:
        await worker.end()
    assert isinstance(ready, Ready)
    assert [info.error for info in ready.models] == [None]


@pytest.mark.slow
async def test_an_environment_without_the_workers_needs_is_told_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(WorkerDied, match="status 1"):
        await _launched(worker_spec(interpreter(tmp_path / "python", "-S"), []))
    assert "-m pip install msgspec" in capfd.readouterr().err


async def test_a_program_that_cannot_be_started_is_a_worker_that_died(tmp_path: Path) -> None:
    with pytest.raises(WorkerDied, match="cannot be started"):
        await _launched(worker_spec(tmp_path / "gone", []))
