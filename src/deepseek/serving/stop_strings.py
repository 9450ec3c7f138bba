"""Ending an answer at a stop string, also when it is split over several tokens."""

from collections.abc import Sequence


class StopStrings:
    """Follows one answer; holds back text that may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        """Watch for any of `stops`; `include` leaves the one found in the text."""
        self._stops = [stop for stop in stops if stop]
        self._include = include
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """Take new text; return what may be shown and whether the answer ends here."""
        if not self._stops:
            return text, False
        self._held += text
        found = [(self._held.find(stop), stop) for stop in self._stops]
        hits = [(at, stop) for at, stop in found if at >= 0]
        if hits:
            # The one complete first wins, as if the text had come character by character.
            at, stop = min(hits, key=lambda hit: (hit[0] + len(hit[1]), hit[0]))
            shown = self._held[: at + len(stop)] if self._include else self._held[:at]
            self._held = ""
            return shown, True
        keep = max(self._overlap(stop) for stop in self._stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def finish(self) -> str:
        """Return the text held back, when the answer has ended for another reason."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """Return the length of the longest end of the held text that begins `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
