"""What the project promises about itself: light imports, complete documents, examples that run."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepseek.cli.main import build_parser
from deepseek.core.errors import error_classes
from deepseek.core.settings_faults import iter_settings
from deepseek.deployment_file import DeploymentFile, load_deployment_file
from deepseek.weights.child_process import environment_of_own_modules

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
README = REPOSITORY / "README.md"


def read(path: Path) -> str:
    assert path.exists(), f"{path.name} is missing: it is part of what the project promises"
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "module",
    [
        "deepseek",
        "deepseek.core.settings_faults",
        "deepseek.scheduling.sharing.registry",
        "deepseek.telemetry.metrics",
        "deepseek.weights.acquisition",
        "deepseek.serving.platform",
        "deepseek.gateway.server",
        "deepseek.deployment_file",
        "deepseek.app",
        "deepseek.cli.main",
        "deepseek.cli.load.runner",
    ],
)
def test_only_a_worker_loads_torch(module: str) -> None:
    probe = (
        f"import sys, {module}\n"
        "print(sorted({'torch', 'transformers', 'safetensors.torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe],
        env={**os.environ, **environment_of_own_modules()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_every_setting_has_its_row_in_the_section_that_it_belongs_to() -> None:
    text = read(DOCS / "deployment-file.md")
    sections = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    settings = list(iter_settings(DeploymentFile))
    missing = [
        ".".join(setting.path)
        for setting in settings
        if (len(setting.path) == 1 and setting.path[0] not in sections)
        or (len(setting.path) > 1 and f"| `{setting.path[-1]}` |" not in sections[setting.path[0]])
    ]
    assert not missing
    known = {setting.path[-1] for setting in settings}
    documented = re.findall(r"^\| `(\w+)` \|", "".join(sections.values()), re.MULTILINE)
    assert set(documented) <= known, "a row describes a setting that does not exist"


def test_every_setting_says_what_it_does() -> None:
    assert all(setting.field.description for setting in iter_settings(DeploymentFile))


def test_every_command_and_option_is_documented() -> None:
    text = read(DOCS / "cli.md")
    sections = dict(
        re.findall(r"^## `deepseek (\w+)`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    )
    parser = build_parser()
    commands = dict(_commands(parser))
    assert set(sections) == set(commands), "docs/cli.md has one section per command"
    missing = [
        f"deepseek {name} {option}"
        for name, command in commands.items()
        for option in _options(command)
        if f"`{option}`" not in sections[name]
    ]
    assert not missing


def test_every_error_code_is_documented() -> None:
    text = "".join(read(path) for path in DOCS.glob("*.md"))
    abstract = {"error"}  # the base of the tree, never raised itself
    assert not [code for code in set(error_classes()) - abstract if f"`{code}`" not in text]


@pytest.mark.parametrize("path", [README, DOCS / "cli.md"], ids=lambda path: path.name)
def test_every_command_line_shown_is_one_that_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read(REPOSITORY / "Makefile"), re.MULTILINE))
    parser = build_parser()
    seen = 0
    for line in _shell_lines(read(path)):
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert {word for word in words[1:] if "=" not in word} <= targets, line
        elif words[:1] == ["deepseek"] and "COMMAND" not in words:
            parser.parse_args([word for word in words[1:] if word != "<"])
        else:
            continue
        seen += 1
    assert seen, f"{path.name} shows no command"


def test_the_readme_has_python_that_compiles_and_yaml_that_validates(tmp_path: Path) -> None:
    blocks = _blocks(read(README))
    for language, code in blocks:
        if language == "python":
            compile(code, "README.md", "exec")
        if language == "yaml":
            path = tmp_path / "readme.yaml"
            path.write_text(code, encoding="utf-8")
            load_deployment_file(path)
    assert {"python", "yaml"} <= {language for language, _ in blocks}


def test_relative_links_of_the_documents_lead_somewhere() -> None:
    broken = [
        f"{path.relative_to(REPOSITORY)}: {target}"
        for path in [README, *DOCS.rglob("*.md")]
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", read(path))
        if "://" not in target and not (path.parent / target).exists()
    ]
    assert not broken


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _options(command: argparse.ArgumentParser) -> Iterator[str]:
    for name, inner in _commands(command):
        yield f"{command.prog} {name}"
        yield from _options(inner)
    for action in command._actions:
        yield from (option for option in action.option_strings if option not in ("-h", "--help"))


def _blocks(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def _shell_lines(text: str) -> Iterator[str]:
    for language, code in _blocks(text):
        if language in ("", "bash", "sh", "console"):
            joined = code.replace("\\\n", " ")
            yield from (line.removeprefix("$ ") for line in joined.splitlines())
