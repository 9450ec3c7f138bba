"""`deepseek bench` as a person types it, against a real server on loopback."""

import json
from pathlib import Path

import pytest

from deepseek.cli.main import main
from tests.cli.peer import Peer

pytestmark = pytest.mark.server


def test_the_table_and_the_json_say_the_same(
    peer: tuple[str, Peer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, server = peer
    out = tmp_path / "report.json"
    code = main(["bench", "--url", url, "--concurrency", "2", "--requests", "6",
                 "--input-tokens", "103", "--output-tokens", "4", "--ignore-eos",
                 "--json", str(out)])  # fmt: skip
    printed = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert code == 0
    assert (report["num_ok"], report["output_tokens"], report["model"]) == (6, 24, "chatty")
    assert report["input_tokens"] == 6 * 103, "two words of probing reveal the peer's scale"
    assert "6 of 6 requests complete" in printed
    for words in ("time to first token", "inter-token", "end to end", "errors: 0", "(usage)"):
        assert words in printed
    assert f"{report['ttft']['p50_ms']:,.1f}" in printed
    load = [body for body in server.bodies if "ignore_eos" in body]
    assert len({body["messages"][0]["content"] for body in load}) == 6, "no two prompts are equal"


@pytest.mark.parametrize(("task", "model"), [("embed", "vectors"), ("classify", "labels")])
def test_encoders_are_measured_in_input_tokens(
    peer: tuple[str, Peer], capsys: pytest.CaptureFixture[str], task: str, model: str
) -> None:
    url, server = peer
    assert main(["bench", "--url", url, "--task", task, "--requests", "4"]) == 0
    printed = capsys.readouterr().out
    assert f"{task} {model}" in printed
    assert "input tokens" in printed
    assert "first token" not in printed
    assert "temperature" not in server.bodies[-1]


def test_a_trace_is_replayed_scaled_to_the_machine(
    peer: tuple[str, Peer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, server = peer
    trace = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": 1000 * n, "input_length": 1024, "output_length": 40, "hash_ids": [7, n]}
        for n in range(9)
    ]
    trace.write_text("\n".join(map(json.dumps, rows)))
    code = main(["bench", "--url", url, "--trace", str(trace), "--speed", "100",
                 "--max-requests", "5", "--max-input-tokens", "203",
                 "--max-output-tokens", "4"])  # fmt: skip
    printed = capsys.readouterr().out
    assert code == 0
    assert "arrivals of the trace: 5 of 5" in printed
    assert "sent late by" in printed
    load = [body for body in server.bodies if body["max_tokens"] == 4]
    prompts = [body["messages"][0]["content"].split() for body in load]
    assert [len(words) for words in prompts] == [100] * 5
    assert len({tuple(words[:50]) for words in prompts}) == 1, "the first block is shared"
    assert len({tuple(words[60:]) for words in prompts}) == 5


def test_prompts_of_a_file_are_taken_in_turn(peer: tuple[str, Peer], tmp_path: Path) -> None:
    url, server = peer
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("first\n\nsecond\n")
    argv = ["bench", "--url", url, "--requests", "3", "--concurrency", "1"]
    assert main([*argv, "--prompt-file", str(prompts)]) == 0
    contents = [body["messages"][0]["content"] for body in server.bodies if body.get("stream")]
    assert contents == ["first", "second", "first"]


def test_a_run_without_a_single_answer_is_exit_1(
    peer: tuple[str, Peer], capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = peer
    assert main(["bench", "--url", url, "--model", "cut", "--requests", "3"]) == 1
    assert "errors: 3 (stream ended early x 3)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model", "busy"], "the queue is full"),
        (["--model", "nobody"], "serves no 'nobody'"),
        (["--speed", "2"], "--speed has no effect without --trace"),
        (["--trace", "absent", "--requests", "3"], "--requests has no effect with --trace"),
        (["--trace", "absent"], "--trace: absent: No such file"),
        (["--prompt-file", "absent"], "--prompt-file: absent: No such file"),
        (["--prompt-file", "x", "--input-tokens", "3"], "--input-tokens has no effect"),
    ],
)
def test_a_run_that_cannot_begin_is_exit_2(
    peer: tuple[str, Peer], capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    url, _ = peer
    assert main(["bench", "--url", url, *argv]) == 2
    assert words in capsys.readouterr().err


def test_an_absent_server_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--url", "http://127.0.0.1:1"]) == 2
    assert "nothing listens at http://127.0.0.1:1" in capsys.readouterr().err
