"""One JSON line per engine step, for fitting the simulator to a machine."""

import logging
from pathlib import Path

import msgspec

from deepseek.scheduling.batching.base import StepShape
from deepseek.scheduling.simulation.step_times import StepTiming

logger = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode
_FLUSH_EVERY = 64
"""Lines written together: a write a step would be seen in the steps of a small model."""


class StepRecord:
    """Appends to a file; one that cannot be written is said once, and nothing stops for it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[bytes] = []
        self._is_broken = False

    def add(self, model: str, shape: StepShape, *, started_s: float, seconds: float) -> None:
        """Record one step; times are the worker's monotonic clock.

        One that held nothing is the rest of the step before it: see `StepLoop`.
        """
        line = StepTiming(
            t=round(started_s, 6),
            model=model,
            s=round(seconds, 7),
            prefill=shape.num_prefill_tokens,
            decoding=shape.num_decoding,
            context=shape.num_context_tokens,
            sequences=shape.num_sequences,
            pairs=shape.num_prefill_pairs,
        )
        self._lines.append(_encode(line))
        if len(self._lines) >= _FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Write what has been recorded."""
        lines, self._lines = self._lines, []
        if not lines or self._is_broken:
            return
        try:
            with self._path.open("ab") as file:
                file.write(b"\n".join(lines) + b"\n")
        except OSError as error:
            self._is_broken = True
            logger.error("step_record: %s cannot be written: %s", self._path, error.strerror)
