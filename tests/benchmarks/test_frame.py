"""The benchmark frame: what holds and what does not, the file, environments, processes."""

import io
import json
import math
import os
import socket
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.frame import (
    Row,
    ServerFailed,
    ServerProcess,
    bound,
    comparison,
    fact,
    finish,
    machine,
    peer_environment,
    print_rows,
)

LISTENER = """
import http.server, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
handler = http.server.SimpleHTTPRequestHandler
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), handler)
server.serve_forever()
"""


@pytest.mark.parametrize(
    ("row", "ratio", "target", "holds"),
    [
        (comparison("m", ours=30.0, peer=10.0, at_least=3), 3.0, ">= 3x", True),
        (comparison("m", ours=29.0, peer=10.0, at_least=3), 2.9, ">= 3x", False),
        (comparison("m", ours=2.0, peer=6.0, at_least=3, lower_is_better=True), 3.0, ">= 3x", True),
        (comparison("m", ours=1.0, peer=None, at_least=3), None, ">= 3x", False),
        (comparison("m", ours=1.0, peer=0.0), None, None, None),
        (bound("m", 20.0, at_most=20), None, "<= 20", True),
        (bound("m", 20.1, at_most=20), None, "<= 20", False),
        (bound("m", 0.9, at_least=1, at_most=2), None, ">= 1 and <= 2", False),
        (bound("m", math.nan, at_most=20), None, "<= 20", False),
        (fact("m", "words"), None, None, None),
    ],
)
def test_a_row_holds_only_when_its_target_is_met(
    row: Row, ratio: float | None, target: str | None, holds: bool | None
) -> None:
    assert (row.ratio, row.target, row.holds) == (ratio, target, holds)


def test_finish_writes_the_rows_and_fails_when_a_target_does(tmp_path: Path) -> None:
    good = comparison("tokens (tok/s)", ours=300.0, peer=100.0, at_least=2)
    assert finish("demo", [good, fact("answer", "42")], results=tmp_path) == 0
    written = json.loads((tmp_path / "demo.json").read_text())
    assert written["rows"][0] == {
        "measure": "tokens (tok/s)",
        "ours": 300.0,
        "peer": 100.0,
        "ratio": 3.0,
        "target": ">= 2x",
        "holds": True,
    }
    assert written.keys() == {"rows", "machine", "date"}
    finish("demo", [good], details={"servers": [1]}, results=tmp_path)
    assert json.loads((tmp_path / "demo.json").read_text())["details"] == {"servers": [1]}
    assert finish("demo", [good, bound("errors", 1, at_most=0)], results=tmp_path) == 1


def test_the_table_shows_every_column() -> None:
    out = io.StringIO()
    rows = [comparison("tokens (tok/s)", ours=1234.5, peer=100.0, at_least=20)]
    print_rows("serving", rows, console=Console(file=out, width=120))
    for words in ("serving", "tokens (tok/s)", "1,234.5", "100", "12.35x", ">= 20x", "NO"):
        assert words in out.getvalue()


def test_the_machine_is_described_without_its_name() -> None:
    described = machine()
    assert described["cores"] >= 1
    assert socket.gethostname() not in json.dumps(described)


@pytest.mark.server
def test_a_server_is_awaited_and_ended_with_its_children(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "logs/server.log"
    command = [sys.executable, "-c", LISTENER, str(port)]
    with ServerProcess(command, log=log, cwd=tmp_path) as server:
        assert server.wait_until_ready(f"http://127.0.0.1:{port}/", timeout_s=8) > 0
        child = int(server.log_tail().split()[1])
        assert _is_running(child)
        assert server.stop() != 0
    while _is_running(child):  # a kill takes effect a moment after it is sent
        time.sleep(0.01)
    assert '"GET / HTTP/1.1" 200' in server.log_tail()


def test_a_server_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no room'); raise SystemExit(3)"]
    with (
        ServerProcess(command, log=tmp_path / "log") as server,
        pytest.raises(ServerFailed, match="ended with 3:\nno room"),
    ):
        server.wait_until_ready("http://127.0.0.1:1/", timeout_s=8)


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with (
        ServerProcess(command, log=tmp_path / "log") as server,
        pytest.raises(ServerFailed, match=r"not ready in 0\.2 s"),
    ):
        server.wait_until_ready("http://127.0.0.1:1/", timeout_s=0.2)


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_an_environment_is_made_once_and_again_when_its_requirements_change(
    tmp_path: Path,
) -> None:
    package = tmp_path / "peer"
    package.mkdir()
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (package / "backend.py").write_text(_BACKEND)
    python = peer_environment("demo", [str(package)], torch=False, root=tmp_path / "venvs")
    installed = python.stat().st_ctime_ns, (python.parent.parent / "installed.sha256").stat()
    again = peer_environment("demo", [str(package)], torch=False, root=tmp_path / "venvs")
    assert (python.stat().st_ctime_ns, (again.parent.parent / "installed.sha256").stat()) == (
        installed
    )
    assert os.spawnv(os.P_WAIT, python, [str(python), "-c", "import peer_demo"]) == 0  # noqa: S606
    changed = [f"{package}", f"peer-demo @ file://{package}"]
    peer_environment("demo", changed, torch=False, root=tmp_path / "venvs")
    assert (again.parent.parent / "installed.sha256").stat() != installed[1]
    without = peer_environment(
        "demo", changed, torch=False, without=["peer-demo"], root=tmp_path / "venvs"
    )
    command = [str(without), "-c", "import peer_demo"]
    assert os.spawnv(os.P_WAIT, without, command) == 1  # noqa: S606


_BACKEND = """
import zipfile

def build_wheel(directory, config_settings=None, metadata_directory=None):
    name = "peer_demo-1.0-py3-none-any.whl"
    info = "peer_demo-1.0.dist-info/"
    with zipfile.ZipFile(f"{directory}/{name}", "w") as wheel:
        wheel.writestr("peer_demo.py", "")
        metadata = "Metadata-Version: 2.1\\nName: peer-demo\\nVersion: 1.0\\n"
        tags = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr(info + "METADATA", metadata)
        wheel.writestr(info + "WHEEL", tags)
        wheel.writestr(info + "RECORD", "")
    return name
"""


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # an orphan that nobody has reaped has ended all the same
