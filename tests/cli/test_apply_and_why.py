"""`deepseek apply` and `deepseek why` against a real `deepseek serve`, and a replay without one."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deepseek.cli.main import main
from tests.gateway.conftest import running_gateway
from tests.served import Served, serve

pytestmark = pytest.mark.server

FILE = """
models:
  chat: {source: LLAMA, qos: {reservedShare: 60%, policy: aimd}}
  embed: {source: BERT, share: 2}
pools:
  default:
    device: cpu
    num_threads: 1
    kv_cache_bytes: 64MiB
    snapshot_interval_s: 0.05
    decision_record: run.jsonl
"""


@pytest.fixture(scope="module")
def directory(
    tiny_llama_dir: Path, tiny_bert_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("served")
    text = FILE.replace("LLAMA", str(tiny_llama_dir)).replace("BERT", str(tiny_bert_dir))
    (path / "f.yaml").write_text(text)
    return path


@pytest.fixture(scope="module")
def served(directory: Path) -> Iterator[Served]:
    with serve(directory / "f.yaml") as running:
        yield running


def written(directory: Path, *, old: str, new: str) -> str:
    """Return the path of a file in which one thing is different."""
    text = (directory / "f.yaml").read_text()
    assert old in text
    path = directory / "changed.yaml"
    path.write_text(text.replace(old, new))
    return str(path)


@pytest.mark.slow
@pytest.mark.timeout(120)
class TestServed:
    def test_a_changed_file_is_applied_and_says_what_changed(
        self, directory: Path, served: Served, capsys: pytest.CaptureFixture[str]
    ) -> None:
        url = ("--url", served.url)
        assert main(["apply", "-f", str(directory / "f.yaml"), *url]) == 0
        assert capsys.readouterr().out == (
            "chat: unchanged\nembed: unchanged\nthe server serves this file already\n"
        )
        path = written(directory, old="60%", new="0.75, deadline: {ttft: 1s}")
        started_s = time.monotonic()
        assert main(["apply", "-f", path, *url]) == 0
        assert time.monotonic() - started_s < 2
        lines = capsys.readouterr().out.splitlines()
        assert lines[:3] == [
            "chat: qos.reserved_share 60% -> 75%",
            "chat: qos.deadline.ttft none -> 1s",
            "embed: unchanged",
        ]
        assert lines[3].startswith("applied in 0.")
        assert main(["apply", "-f", str(directory / "f.yaml"), *url]) == 0

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            ("60%", "130%", "changed.yaml:3: models.chat.qos.reservedShare: must be a part"),
            ("share: 2", "qos: {reserved_share: 0.5}", "chat, embed together reserve 110%"),
            ("num_threads: 1", "num_threads: 2", "pools.default.num_threads: cannot change from 1"),
            ("share: 2", "share: 2, dtype: float32", "models.embed.dtype: cannot change from auto"),
        ],
    )
    def test_what_cannot_be_applied_is_exit_2_and_changes_nothing(
        self,
        directory: Path,
        served: Served,
        capsys: pytest.CaptureFixture[str],
        old: str,
        new: str,
        words: str,
    ) -> None:
        path = written(directory, old=old, new=new)
        assert main(["apply", "-f", path, "--url", served.url]) == 2
        assert words in capsys.readouterr().err
        assert main(["apply", "-f", str(directory / "f.yaml"), "--url", served.url]) == 0
        assert "serves this file already" in capsys.readouterr().out

    def test_decisions_are_told_in_words_and_replay_from_the_record(
        self, directory: Path, served: Served, capsys: pytest.CaptureFixture[str]
    ) -> None:
        url = ("--url", served.url)
        assert main(["why", "embed", *url]) == 0
        assert capsys.readouterr().out == "embed: nothing has been decided yet\n"
        # More at once than the policy's first batch holds: it has to decide.
        prompts = [[number, 2, 3] for number in range(5, 53)]
        body = {"model": "chat", "prompt": prompts, "max_tokens": 48, "ignore_eos": True}
        assert httpx.post(f"{served.url}/v1/completions", json=body, timeout=60).is_success
        assert main(["why", "chat", *url, "-n", "2"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert 2 <= len(lines) <= 4
        assert "s ago  raise-batch-cap: the batch cap goes from" in lines[0]
        assert lines[1].startswith("    saw: wait p99 ")
        assert main(["why", "chat", *url, "--json"]) == 0
        decisions = json.loads(capsys.readouterr().out)
        assert decisions[0]["model"] == "chat"
        assert decisions[0]["age_s"] < 60
        assert main(["why", "nobody", *url]) == 2
        assert "served: chat, embed" in capsys.readouterr().err

        record = directory / "run.jsonl"
        assert main(["why", "chat", "--replay", str(record)]) == 0
        assert capsys.readouterr().out.endswith("steps: the same again\n")
        falsified = directory / "falsified.jsonl"
        falsified.write_text(record.read_text().replace("raise-batch-cap", "lower-batch-cap"))
        assert main(["why", "--replay", str(falsified)]) == 1
        out = capsys.readouterr().out
        assert "reports were decided otherwise" in out
        assert "recorded lower-batch-cap" in out
        assert main(["why", "chat", "--replay", str(falsified), "--json"]) == 1
        differences = json.loads(capsys.readouterr().out)["chat"]["differences"]
        assert differences[0]["recorded"][0]["action"] == "lower-batch-cap"
        assert differences[0]["replayed"][0]["action"] == "raise-batch-cap"


def test_input_that_cannot_be_used_is_exit_2_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["why"]) == 2
    assert "MODEL is missing" in capsys.readouterr().err
    assert main(["why", "--replay", str(tmp_path / "absent")]) == 2
    assert "absent: cannot be read" in capsys.readouterr().err
    (tmp_path / "poem").write_text("roses are red\n")
    assert main(["why", "--replay", str(tmp_path / "poem")]) == 2
    assert "poem: line 1 is not a line of a decision record" in capsys.readouterr().err
    (tmp_path / "empty").write_text("")
    assert main(["why", "chat", "--replay", str(tmp_path / "empty")]) == 2
    assert "holds nothing of 'chat'; it holds: nothing" in capsys.readouterr().err
    assert main(["why", "chat", "--url", "http://127.0.0.1:1"]) == 2
    assert "start a server with `deepseek serve`" in capsys.readouterr().err


async def test_a_server_without_admin_routes_says_how_to_get_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("models: {served: {source: x}}")
    async with running_gateway(admin=False) as server:
        for command in (["why", "served"], ["apply", "-f", str(path)]):
            assert await asyncio.to_thread(main, [*command, "--url", server.url]) == 2
            assert "`gateway: {admin: true}`" in capsys.readouterr().err
    async with running_gateway() as server:
        assert await asyncio.to_thread(main, ["why", "served", "--url", server.url]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2 min ago  raise-batch-cap: the queue has grown to 9",
        "    saw: waiting 9, oldest wait 250 ms, temperature unknown",
    ]
