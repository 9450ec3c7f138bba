"""The command as a person types it: exit codes, messages, no tracebacks, a quick start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema_rs
import pytest
import yaml

from deepseek import __version__
from deepseek.cli.main import main

HEAVY = (
    "torch", "transformers", "tokenizers", "numpy", "pydantic", "yaml", "starlette", "uvicorn",
    "httptools", "llguidance", "jinja2",
)  # fmt: skip


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    probe = (
        "import sys\nfrom deepseek.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: print('exit', end.code)\n"
        f"print('loaded', sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    commands = (
        "serve", "validate", "apply", "why", "schema", "models", "adapters", "chat", "bench",
        "version",
    )  # fmt: skip
    for command in commands:
        assert f"\n    {command} " in done.stdout
    assert done.stdout.endswith("exit 0\nloaded []\n")


def test_version_names_deepseek_and_python(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"deepseek {__version__}\npython 3.")


def test_validate_says_what_a_good_file_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("models: {a: {source: x}, b: {source: y, pool: g}}\npools: {g: {}}\n")
    assert main(["validate", "-f", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: valid: 2 models (a, b) on 2 pools (default, g)\n"


@pytest.mark.parametrize("command", ["validate", "serve"])
def test_a_bad_file_is_exit_2_and_one_line_per_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("models:\n  a: {source: x, dtpe: 1}\n  b: {}\n")
    assert main([command, "-f", str(path)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[0] == f"error: {path}:2: models.a.dtpe: unknown key; did you mean 'dtype'?"
    assert err[1].startswith(f"{path}:3: models.b.source: is missing")
    assert len(err) == 2


def interpreter(path: Path, *options: str) -> None:
    """A program that is this interpreter, started with `options`."""
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {" ".join(options)} "$@"\n')
    path.chmod(0o755)


RESERVED_GPU = """
models: {a: {source: x, pool: g, qos: {reservedShare: 50%}}, b: {source: x, pool: g}}
pools:
  g:
    device: cuda:99
    python: ./python
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_reservation_on_a_gpu_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(RESERVED_GPU)
    interpreter(tmp_path / "python")
    assert main(["validate", "-f", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {path}:5: pools.g.device: 'cuda:99' does not exist, and part of")
    assert "reserved (a); this machine has" in err
    assert "use `cpu` or `auto`" in err
    assert main(["validate", "-f", str(path), "--elsewhere"]) == 0
    path.write_text(RESERVED_GPU.replace("50%", "0%"))
    assert main(["validate", "-f", str(path)]) == 0


def test_an_interpreter_without_torch_says_nothing_of_gpus(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(RESERVED_GPU)
    interpreter(tmp_path / "python", "-I", "-S")
    assert main(["validate", "-f", str(path)]) == 0
    (tmp_path / "python").unlink()
    assert main(["validate", "-f", str(path)]) == 0, "`--sources` tells of it"


def test_sources_that_are_not_there_are_all_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPSEEK_HOME", str(tmp_path / "home"))
    (tmp_path / "empty").mkdir()
    path = tmp_path / "f.yaml"
    path.write_text(
        "models:\n  a: {source: ./absent}\n  b: {source: ./empty}\n  c: {source: minilm-l6}\n"
    )
    assert main(["validate", "-f", str(path), "--sources"]) == 2
    out, err = capsys.readouterr()
    assert "models.c: in the catalogue; downloaded when first served" in out
    faults = err.splitlines()
    assert "models.a: source './absent'" in faults[0]
    assert faults[1].startswith("models.b: ")
    assert not (tmp_path / "home/models/minilm-l6").exists()


def test_schema_prints_or_writes_the_same_schema(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schema"]) == 0
    printed = capsys.readouterr().out
    assert main(["schema", "-o", str(tmp_path / "s.json")]) == 0
    assert (tmp_path / "s.json").read_text() == printed
    schema = json.loads(printed)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema_rs.meta.validate(schema)
    jsonschema_rs.validate(schema, yaml.safe_load("models: {m: {source: x}}"))


def test_an_unwritable_output_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "-o", "/absent/s.json"]) == 2
    assert capsys.readouterr().err == (
        "error: /absent/s.json: cannot be written: No such file or directory\n"
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "COMMAND"),
        (["sevre"], "invalid choice"),
        (["serve", "--port", "70000"], "'70000' is not a port; give a number from 0 to 65535"),
        (["serve", "--log-level", "loud"], "invalid choice"),
        (["validate"], "-f/--file"),
        (["bench", "--requests", "0"], "'0' is not a whole number of at least 1"),
        (["bench", "--speed", "nan"], "'nan' is not a number above 0"),
        (["chat", "--temperature", "-1", "hi"], "'-1' is not a number of at least 0"),
    ],
)
def test_bad_arguments_are_exit_2_with_the_reason(
    capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    assert words in capsys.readouterr().err


def test_serving_without_an_extra_names_what_to_install() -> None:
    probe = (
        "import sys; sys.modules['starlette'] = None\n"
        "from deepseek.cli.main import main\nsys.exit(main(['serve']))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: serving needs the package 'starlette'")
    assert "deepseek-platform[engine,gateway,convert]" in done.stderr


@pytest.mark.parametrize("argv", [["--help"], ["schema"]])
def test_a_reader_that_leaves_early_is_no_error(argv: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "deepseek.cli.main", *argv],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")
