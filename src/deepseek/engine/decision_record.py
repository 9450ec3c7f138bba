"""The file behind a decision record: bounded, begun anew by each worker, never in a step's way."""

import logging
from pathlib import Path

from deepseek.scheduling.decision_log import Adjusted, Ended, Line, encode_line

logger = logging.getLogger(__name__)


class DecisionRecord:
    """Takes the lines of a worker's policies; a file that cannot be written is said once."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        """Begin the file; the one before it is kept with `.1` after its name."""
        self._path = path
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._lines: list[bytes] = []
        self._is_open = True
        try:
            if path.exists():
                path.replace(path.with_name(path.name + ".1"))
            path.touch()
        except OSError as error:
            self._give_up(error)

    def add(self, line: Line) -> None:
        """Keep a line; whatever is kept is written with the next report of signals."""
        if not self._is_open:
            return
        text = encode_line(line)
        self._num_bytes += len(text) + 1
        if self._num_bytes > self._max_bytes:
            # A replay needs the beginning: a full record ends, it does not lose its first part.
            text = encode_line(Ended(reason=f"it has reached {self._max_bytes} bytes"))
            self._lines.append(text)
            self.flush()
            self._is_open = False
            logger.warning("decision_record: %s is full and ends here", self._path)
            return
        self._lines.append(text)
        if isinstance(line, Adjusted):
            self.flush()

    def flush(self) -> None:
        """Write what has been kept."""
        lines, self._lines = self._lines, []
        if not lines or not self._is_open:
            return
        try:
            with self._path.open("ab") as file:
                file.write(b"\n".join(lines) + b"\n")
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._is_open = False
        logger.error("decision_record: %s cannot be written: %s", self._path, error.strerror)
