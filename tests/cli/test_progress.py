"""What progress looks like on a terminal and in a log."""

import io

import pytest
from rich.console import Console

from deepseek.cli.progress import TerminalProgress


def run_two_stages(console: Console) -> None:
    with TerminalProgress(console) as progress:
        progress.stage("m: downloading", total=3 * 2**20, unit="bytes")
        progress.advance(2**20)
        progress.advance(2**21)
        progress.stage("m: unpacking")


def test_a_log_gets_one_line_per_stage() -> None:
    stream = io.StringIO()
    run_two_stages(Console(file=stream))
    assert stream.getvalue() == "m: downloading (3 MiB)\nm: unpacking\n"


def test_a_long_stage_name_stays_on_one_line_of_a_log() -> None:
    stream = io.StringIO()
    with TerminalProgress(Console(file=stream, width=20)) as progress:
        progress.stage("copying " + "x" * 200)
    assert stream.getvalue().count("\n") == 1


def test_a_terminal_gets_a_full_bar_per_stage() -> None:
    stream = io.StringIO()
    run_two_stages(Console(file=stream, force_terminal=True, width=100, color_system=None))
    *bars, _ = stream.getvalue().rpartition("\x1b[2K")[2].splitlines()
    assert [bar.split("━")[0].rstrip() for bar in bars] == ["✓ m: downloading", "✓ m: unpacking"]
    assert all("━" * 30 in bar for bar in bars)
    assert "3.0/3.0 MiB" in bars[0]


def test_a_terminal_stays_empty_where_nothing_is_to_do() -> None:
    stream = io.StringIO()
    with TerminalProgress(Console(file=stream, force_terminal=True)):
        pass
    assert stream.getvalue() == ""


def test_a_stage_that_failed_is_not_shown_as_done() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    progress = TerminalProgress(console)

    def fail() -> None:
        with progress:
            progress.stage("m: downloading", total=10)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert "✓" not in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[?25h")  # the cursor is back


def test_square_brackets_in_a_name_are_text() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    with TerminalProgress(console) as progress:
        progress.stage("copying /tmp/[red]model")
    assert "copying /tmp/[red]model" in stream.getvalue()
