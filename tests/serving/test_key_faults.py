"""How weights are checked and opened, in a deployment file: what makes no sense is refused."""

from pathlib import Path
from typing import Any

import pytest

from deepseek.app import with_absolute_paths
from deepseek.core.errors import DeploymentFileError
from deepseek.deployment_file import DeploymentFile, load_deployment_file, parse_deployment


def parse(**model: Any) -> DeploymentFile:
    return parse_deployment({"models": {"m": {"source": "s", **model}}})


def test_each_chunk_is_checked_once_where_nothing_is_said() -> None:
    assert parse().models["m"].verify == "once"
    assert parse(verify="always").models["m"].verify == "always"
    with pytest.raises(DeploymentFileError, match=r"models\.m\.verify: must be one of once, alw"):
        parse(verify="sometimes")


@pytest.mark.parametrize(
    "key", [{"file": "keys/a"}, {"env": "TEAM_KEY"}, {"command": ["aws", "kms", "decrypt"]}]
)
def test_the_place_of_a_key_is_read(key: dict[str, Any]) -> None:
    assert parse(key=key).models["m"].key == key


def test_a_key_file_is_found_beside_the_deployment_file() -> None:
    file = with_absolute_paths(parse(key={"file": "keys/a"}), base_dir=Path("/etc/platform"))
    assert file.models["m"].key == {"file": "/etc/platform/keys/a"}


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"key": {}}, "models.m.key: needs one line that says where the key is, never the key"),
        ({"key": {"file": "a", "env": "B"}}, "models.m.key: needs one line"),
        ({"key": {"vault": "a"}}, "models.m.key.vault: is no place for a key; known: command"),
        ({"key": {"command": "aws kms"}}, "models.m.key.command: `command` needs a program"),
        ({"key": {"env": 3}}, "models.m.key.env: `env` needs the name"),
        (
            {"key": {"env": "B"}, "engine": "vllm"},
            "models.m.key: vLLM cannot open sealed weights; write `engine: torch`",
        ),
    ],
)
def test_what_is_no_place_of_a_key_is_refused(model: dict[str, Any], told: str) -> None:
    with pytest.raises(DeploymentFileError) as fault:
        parse(**model)
    assert told in fault.value.message


def test_a_key_that_was_written_into_the_file_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "deployment.yaml"
    path.write_text("models:\n  m:\n    source: s\n    key: " + "ab" * 32 + "\n")
    with pytest.raises(DeploymentFileError) as fault:
        load_deployment_file(path)
    assert "deployment.yaml:4: models.m.key: needs one line" in fault.value.message
    assert "abab" not in fault.value.message
