"""`deepseek chat` against a real server: one prompt, standard input, a terminal."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from deepseek.cli.chat import Conversation
from deepseek.cli.http_client import HttpClient
from deepseek.cli.main import main
from deepseek.core.errors import Overloaded, WorkerCrashed
from tests.cli.peer import Peer

pytestmark = pytest.mark.server
COMMAND = [sys.executable, "-m", "deepseek.cli.main", "chat"]


def test_one_prompt_prints_the_answer_of_the_first_model_that_generates(
    peer: tuple[str, Peer], capsys: pytest.CaptureFixture[str]
) -> None:
    url, server = peer
    code = main(["chat", "--url", url, "--system", "be brief", "--max-tokens", "2",
                 "--temperature", "0", "hello", "there"])  # fmt: skip
    assert (code, capsys.readouterr().out) == (0, " word word\n")
    assert server.bodies == [
        {
            "model": "chatty",
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "hello there"},
            ],
            "temperature": 0.0,
            "max_tokens": 2,
            "stream": True,
        }
    ]


def test_a_piped_prompt_is_read_from_standard_input(peer: tuple[str, Peer]) -> None:
    url, server = peer
    done = subprocess.run(
        [*COMMAND, "--url", url], input="from a pipe\n", capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, " word word word\n")
    assert server.bodies[0]["messages"][0]["content"] == "from a pipe"
    empty = subprocess.run([*COMMAND, "--url", url], input="", capture_output=True, text=True)
    assert empty.returncode == 2
    assert "no prompt" in empty.stderr


def test_escape_sequences_of_an_answer_do_not_reach_the_terminal(
    peer: tuple[str, Peer], capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = peer
    assert main(["chat", "--url", url, "--model", "steering", "--max-tokens", "1", "x"]) == 0
    assert capsys.readouterr().out == "[31mred\n"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("busy", "the queue is full"),
        ("failing", "it broke"),
        ("cut", "closed the stream before [DONE]"),
        ("garbage", "not a chat completion"),
        ("nobody", "serves no 'nobody'; it serves: chatty, no-usage"),
    ],
)
def test_a_failure_is_one_line_and_exit_2(
    peer: tuple[str, Peer], capsys: pytest.CaptureFixture[str], model: str, words: str
) -> None:
    url, _ = peer
    assert main(["chat", "--url", url, "--model", model, "x"]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_an_absent_server_says_how_to_start_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--url", "http://127.0.0.1:1", "x"]) == 2
    assert "start a server with `deepseek serve`" in capsys.readouterr().err


async def test_a_conversation_remembers_turns_and_forgets_refused_ones(
    peer: tuple[str, Peer],
) -> None:
    url, server = peer
    with HttpClient(url) as client:
        conversation = Conversation(client, model="chatty", system="s", max_tokens=1)
        await conversation.ask("one", lambda text: None)
        conversation.model = "busy"
        with pytest.raises(Overloaded):
            await conversation.ask("two", lambda text: None)
        with pytest.raises(WorkerCrashed):
            await Conversation(client, model="failing").ask("x", lambda text: None)
        conversation.model = "chatty"
        await conversation.ask("three", lambda text: None)
    assert [message["content"] for message in server.bodies[-1]["messages"]] == [
        "s", "one", " word", "three",
    ]  # fmt: skip
    conversation.clear()
    assert [message["role"] for message in conversation.messages] == ["system"]


def test_in_a_terminal_ctrl_c_stops_the_answer_and_then_leaves(peer: tuple[str, Peer]) -> None:
    url, server = peer
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(COMMAND[0], [*COMMAND, "--url", url, "--model", "endless"])  # noqa: S606
    seen = ""

    def wait_for(text: str) -> None:
        nonlocal seen
        while text not in seen:
            seen += os.read(terminal, 4096).decode(errors="replace")
        seen = seen.partition(text)[2]

    wait_for("> ")
    os.write(terminal, b"go on\n")
    wait_for(" word word")
    os.write(terminal, b"\x03")
    wait_for("(stopped)")
    wait_for("> ")
    while server.num_running:
        time.sleep(0.01)
    os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert server.num_abandoned == 1


def test_ctrl_c_at_a_single_prompt_is_exit_130(peer: tuple[str, Peer]) -> None:
    url, server = peer
    command = [*COMMAND, "--url", url, "--model", "endless", "x"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err) == (130, b"")
    assert len(server.bodies) == 1
