"""Stop strings over token boundaries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.serving.stop_strings import StopStrings


def feed(stops: list[str], pieces: list[str], *, include: bool = False) -> tuple[str, bool]:
    watcher = StopStrings(stops, include=include)
    shown = ""
    for piece in pieces:
        text, stopped = watcher.add(piece)
        shown += text
        if stopped:
            return shown, True
    return shown + watcher.finish(), False


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "stopped"),
    [
        (["END"], ["one E", "N", "D two"], "one ", True),
        (["END"], ["one E", "N", "X"], "one ENX", False),
        (["ab", "b"], ["xab"], "x", True),
        (["b", "abc"], ["xabc"], "xa", True),
        ([], ["all"], "all", False),
        (["\n\n"], ["a\n", "b\n", "\nc"], "a\nb", True),
        (["aab"], ["a", "a", "a", "b"], "a", True),
    ],
)
def test_answers_end_before_the_stop_string(
    stops: list[str], pieces: list[str], shown: str, stopped: bool
) -> None:
    assert feed(stops, pieces) == (shown, stopped)


def test_the_stop_string_stays_when_asked_for() -> None:
    assert feed(["END"], ["one EN", "D two"], include=True) == ("one END", True)


@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_cutting_piece_by_piece_equals_cutting_the_whole_text(
    pieces: list[str], stops: list[str]
) -> None:
    whole = "".join(pieces)
    ends = [whole.find(stop) + len(stop) for stop in stops if stop in whole]
    shown, stopped = feed(stops, pieces)
    assert stopped == bool(ends)
    assert whole.startswith(shown)
    if not stopped:
        assert shown == whole
    else:
        assert len(shown) < min(ends)
        assert len(shown) >= min(whole.find(stop) for stop in stops if stop in whole)


@given(st.lists(st.text("abc", max_size=3), max_size=10))
def test_text_is_never_held_longer_than_a_stop_string_could_need(pieces: list[str]) -> None:
    watcher = StopStrings(["abca"])
    seen = shown = ""
    for piece in pieces:
        text, stopped = watcher.add(piece)
        seen, shown = seen + piece, shown + text
        if stopped:
            return
        assert len(seen) - len(shown) < len("abca")
