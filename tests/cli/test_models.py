"""`deepseek models` on a cache of its own."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from deepseek.cli.main import main
from deepseek.weights.cache import ModelCache
from deepseek.weights.store.keys.registry import make_key_source
from deepseek.weights.store.manifest import read_manifest
from deepseek.weights.store.reader import open_model


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home"
    monkeypatch.setenv("DEEPSEEK_HOME", str(path))
    return path


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    assert main(["models", "list", "--json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_an_empty_cache_lists_what_can_be_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(capsys)
    assert rows["smollm2-135m"]["state"] == "available"
    assert rows["smollm2-135m"]["task"] == "generate"
    assert rows["smollm2-135m"]["licence"] == "Apache-2.0"
    assert rows["minilm-l6"]["task"] == "embed"
    assert rows["sentiment"]["task"] == "classify"


def test_a_directory_can_be_added_listed_and_removed(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "add", "mine", "--path", str(tiny_llama_dir)]) == 0
    assert capsys.readouterr().out.startswith("mine: ")
    row = listed(capsys)["mine"]
    assert (row["state"], row["task"]) == ("linked", "generate")
    assert row["path"] == str(tiny_llama_dir)
    assert main(["models", "remove", "mine"]) == 0
    assert capsys.readouterr().out == "removed mine\n"
    assert "mine" not in listed(capsys)
    assert tiny_llama_dir.exists()


def test_a_copy_is_the_caches_own(
    tiny_bert_dir: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "add", "mine", "--copy", "--path", str(tiny_bert_dir)]) == 0
    assert f"copying {tiny_bert_dir}\n" in capsys.readouterr().err
    row = listed(capsys)["mine"]
    assert (row["state"], row["task"]) == ("ready", "embed")
    assert row["path"] == str(home / "models" / "mine")


def test_weights_can_be_added_as_chunks_checked_shared_and_collected(
    tiny_llama_dir: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add = ["models", "add", "--chunks", "--path", str(tiny_llama_dir)]
    assert main([*add, "one"]) == 0
    assert main([*add, "two"]) == 0
    assert "one: importing" in capsys.readouterr().err
    rows = listed(capsys)
    weights = (tiny_llama_dir / "model.safetensors").stat().st_size
    for name in ("one", "two"):
        assert (rows[name]["state"], rows[name]["task"]) == ("ready", "generate")
        assert rows[name]["size_bytes"] > weights
        assert not list((home / "models" / name).glob("*.safetensors"))
    packs = list((home / "chunks" / "packs").iterdir())
    assert sum(512 * pack.stat().st_blocks for pack in packs) < 1.1 * weights, (
        "two models, one copy"
    )
    assert main(["models", "verify"]) == 0
    assert capsys.readouterr().out == "one: intact\ntwo: intact\n"
    assert main(["models", "remove", "one"]) == 0
    assert "deepseek models gc" in capsys.readouterr().out
    assert main(["models", "gc"]) == 0
    assert capsys.readouterr().out == "removed 0 chunks, freed 0 MiB\n"
    assert main(["models", "remove", "two"]) == 0
    capsys.readouterr()
    assert main(["models", "gc"]) == 0
    assert re.fullmatch(r"removed \d+ chunks, freed \d+ MiB\n", capsys.readouterr().out)
    assert list((home / "chunks" / "packs").iterdir()) == []


def test_gc_removes_prepared_weights_that_no_model_has(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = ModelCache(home).prepared.root
    prepared.mkdir(parents=True)
    (prepared / "of-no-model.safetensors").write_bytes(bytes(3 << 20))
    assert main(["models", "gc"]) == 0
    assert "removed 1 files of prepared weights, freed 3 MiB" in capsys.readouterr().out
    assert list(prepared.iterdir()) == []


def test_a_damaged_chunk_is_named_and_the_exit_code_says_so(
    tiny_llama_dir: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["models", "add", "mine", "--chunks", "--path", str(tiny_llama_dir)])
    with (home / "chunks" / "packs" / "000001.pack").open("r+b") as pack:
        pack.write(b"damage")
    capsys.readouterr()
    for command in (["models", "verify"], ["models", "verify", "mine"]):
        assert main(command) == 1
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith("mine: tensor model.embed_tokens.weight: chunk 0: chunk ")
        assert "000001.pack is damaged" in line
    (home / "models" / "mine" / "model.chunks.json").write_text("{")
    assert main(["models", "verify"]) == 1
    assert "model.chunks.json is damaged" in capsys.readouterr().out
    assert main(["models", "remove", "mine"]) == 0
    capsys.readouterr()
    assert main(["models", "verify"]) == 0
    assert capsys.readouterr().out == "no model is in the chunk store\n"


def test_only_chunks_can_be_verified(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["models", "add", "mine", "--path", str(tiny_llama_dir)])
    assert main(["models", "verify", "mine"]) == 2
    assert "only models added with --chunks" in capsys.readouterr().err


def test_chunks_need_a_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "add", "smollm2-135m", "--chunks"]) == 2
    assert "--chunks needs --path" in capsys.readouterr().err


def test_weights_can_be_sealed(
    tiny_llama_dir: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEAM_KEY", "ab" * 32)
    add = ["models", "add", "--chunks", "--path", str(tiny_llama_dir), "--seal-with"]
    assert main([*add, "env:TEAM_KEY", "one"]) == 0
    assert main([*add, f"command:echo {'ab' * 32}", "--key-id", "team-a", "two"]) == 0
    for name, key_id in {"one": "one", "two": "team-a"}.items():
        sealing = read_manifest(home / "models" / name).sealing
        assert sealing is not None
        assert sealing.key_id == key_id
    reader = open_model(home / "models" / "two", keys=make_key_source("env", "TEAM_KEY"))
    name = "model.embed_tokens.weight"
    place = reader.image.tensors[name]
    plain = load_file(tiny_llama_dir / "model.safetensors")[name]
    assert bytes(reader.map()[place.start : place.end]) == plain.tobytes()
    capsys.readouterr()
    assert main(["models", "verify"]) == 0
    assert capsys.readouterr().out == "one: intact\ntwo: intact\n", "no key is needed for it"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seal-with", "env:TEAM_KEY"], "--seal-with needs --chunks"),
        (["--chunks", "--key-id", "a"], "--key-id needs --seal-with"),
        (["--chunks", "--seal-with", "env:NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        (["--chunks", "--seal-with", "vault:a"], "'vault' is unknown; known: command, env, file"),
        (["--chunks", "--seal-with", "abcdef"], "is unknown; known: command, env, file"),
    ],
)
def test_what_does_not_seal_is_said_before_anything_is_stored(
    options: list[str],
    words: str,
    tiny_llama_dir: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEAM_KEY", "ab" * 32)
    command = ["models", "add", "mine", "--path", str(tiny_llama_dir), *options]
    try:
        status: object = main(command)
    except SystemExit as refusal:  # argparse's own
        status = refusal.code
    assert status == 2
    assert words in capsys.readouterr().err
    assert not (home / "chunks").exists()


def test_a_broken_model_is_listed_with_its_fault(
    tiny_bert_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(tiny_bert_dir, tmp_path / "source"))
    main(["models", "add", "mine", "--path", str(source)])
    (source / "config.json").unlink()
    capsys.readouterr()
    row = listed(capsys)["mine"]
    assert (row["state"], row["task"]) == ("broken", None)
    assert "no config.json" in row["error"]
    main(["models", "list"])
    table = capsys.readouterr().out
    assert "broken" in table
    assert "no config.json" in table


def test_the_table_has_one_line_per_model_when_it_is_piped(
    tiny_bert_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["models", "add", "mine", "--path", str(tiny_bert_dir)])
    capsys.readouterr()
    assert main(["models", "list"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["NAME", "TASK", "STATE", "SIZE"]
    assert len(rows) == len(listed(capsys))
    (mine,) = [row.split() for row in rows if row.startswith("mine")]
    assert mine[1:3] == ["embed", "linked"]
    assert mine[-1] == str(tiny_bert_dir)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "smolm"], "no model 'smolm' in the catalogue (smollm2-135m, minilm-l6"),
        (["add", "smollm2-135m", "--copy"], "--copy needs --path"),
        (["add", "mine", "--path", "/nowhere"], "/nowhere does not exist"),
        (["add", "mine", "--path", "/dev/null"], "/dev/null is a file, not a model directory"),
        (["add", "a/b", "--path", "."], "config.json"),
        (["remove", "mine"], "no model 'mine' in the cache; it holds nothing"),
        (["remove", "../../etc"], "no model '../../etc' in the cache"),
        (["remove", ""], "no model '' in the cache"),
    ],
)
def test_wrong_input_is_explained_with_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1


def test_removing_does_not_leave_the_cache(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = home / "precious"
    precious.mkdir(parents=True)
    (home / "models").mkdir()
    for name in ("../precious", ".", "..", "", str(precious)):
        assert main(["models", "remove", name]) == 2
    assert precious.exists()
