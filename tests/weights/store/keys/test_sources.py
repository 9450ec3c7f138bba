"""Keys are found where the settings say, and nowhere shown."""

import base64
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from deepseek.core import plugins
from deepseek.core.errors import ConfigurationError
from deepseek.weights.store.keys.base import key_of
from deepseek.weights.store.keys.registry import key_source_names, make_key_source

KEY = bytes(range(32))
SPELLINGS = [KEY.hex(), KEY.hex().upper() + "\n", base64.b64encode(KEY).decode() + "\n"]
WRONG = ["", KEY.hex()[:-1], KEY.hex()[:-2], KEY.hex() + "00", "x" * 64, "pass word"]


def key_file(path: Path, text: str, *, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_key_comes_from_a_file_a_variable_and_a_program(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM_KEY", text)
    file = key_file(tmp_path / "key", text)
    program = [sys.executable, "-c", f"print({text!r})"]
    for name, argument in {"file": str(file), "env": "TEAM_KEY", "command": program}.items():
        assert make_key_source(name, argument)("team-a") == KEY, name


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_key_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ConfigurationError, match="the place holds no key: write its 32") as caught:
        key_of(text.encode(), place="the place")
    assert not text or text not in caught.value.message


def test_a_program_is_told_which_key_is_asked_for() -> None:
    keys = {"a": KEY.hex(), "b": bytes(32).hex()}
    script = f"import os; print({keys!r}[os.environ['DEEPSEEK_KEY_ID']])"
    source = make_key_source("command", [sys.executable, "-c", script])
    assert (source("a"), source("b")) == (KEY, bytes(32))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_key_file_that_others_may_read_is_refused(mode: int, tmp_path: Path) -> None:
    path = key_file(tmp_path / "key", KEY.hex(), mode=mode)
    is_roots_group = path.stat().st_uid == 0 and mode == 0o640
    if is_roots_group:
        assert make_key_source("file", str(path))("k") == KEY
        return
    with pytest.raises(ConfigurationError, match=rf"others \(mode {mode:04o}, .*chmod 0600"):
        make_key_source("file", str(path))("k")


@pytest.mark.parametrize(
    ("name", "argument", "words"),
    [
        ("file", "/nowhere/key", "the key file /nowhere/key cannot be read"),
        ("env", "NO_SUCH_KEY", "the environment variable NO_SUCH_KEY is not set"),
        ("command", ["/no/program"], "the key command '/no/program' cannot be run"),
        ("command", [sys.executable, "-c", "raise SystemExit(3)"], "failed with status 3"),
    ],
)
def test_a_key_that_cannot_be_had_names_the_place(name: str, argument: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make_key_source(name, argument)("k")


@pytest.mark.parametrize(
    ("name", "argument"),
    [("file", ""), ("file", 3), ("env", None), ("command", "echo"), ("command", [])],
)
def test_what_makes_no_place_is_refused_before_a_key_is_needed(name: str, argument: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"`{name}` needs"):
        make_key_source(name, argument)


class Broker:
    """A key source of another package."""

    def __init__(self, argument: Any) -> None:
        self._url: str = argument

    def __call__(self, key_id: str, /) -> bytes:
        return f"{self._url}/{key_id}".encode().ljust(32)


def test_other_packages_bring_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("broker", f"{__name__}:Broker", "deepseek.key_sources")

    def installed(*, group: str) -> EntryPoints:
        return EntryPoints([point]).select(group=group)

    monkeypatch.setattr(plugins, "entry_points", installed)
    assert key_source_names() == ["broker", "command", "env", "file"]
    assert make_key_source("broker", "https://b")("team-a") == b"https://b/team-a".ljust(32)
    with pytest.raises(ConfigurationError, match="'vault' is unknown; known: broker, command"):
        make_key_source("vault", "")
