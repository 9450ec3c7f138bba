"""How fast a model is loaded, how far the load is, and whether it is to go on."""

import math
import threading
import time
from functools import partial

from deepseek.engine.linear import LinearFactory
from deepseek.scheduling.preloading.token_bucket import TokenBucket

_BURST_BYTES = 8 * 1024**2
"""What a limited load may read at once after a pause: about a layer."""


class LoadCancelled(Exception):
    """Nobody wants the load any more; what it had read is freed as this passes."""


class LoadPace:
    """Asked by the thread that loads before each part of a layer; told by the step loop's."""

    def __init__(self, *, bytes_per_s: float = math.inf, total_bytes: int = 0) -> None:
        """`total_bytes`: what the load is expected to read, for `part`."""
        self._total_bytes = total_bytes
        self._changed = threading.Condition()
        self._bucket = TokenBucket(bytes_per_s=bytes_per_s, burst_bytes=_BURST_BYTES)
        self._is_cancelled = False
        self._num_bytes = 0

    @property
    def part(self) -> float:
        """How much of the load is done, from 0 to 1."""
        return min(1.0, self._num_bytes / self._total_bytes) if self._total_bytes else 0.0

    def cancel(self) -> None:
        """End the load before the next part of a layer."""
        with self._changed:
            self._is_cancelled = True
            self._changed.notify()

    def hurry(self) -> None:
        """Lift the limit: somebody waits."""
        with self._changed:
            self._bucket.reconfigure(bytes_per_s=math.inf, now_s=time.monotonic())
            self._changed.notify()

    def advance(self, num_bytes: int) -> None:
        """Wait until so many bytes may be read; raises `LoadCancelled`."""
        with self._changed:
            while True:
                if self._is_cancelled:
                    raise LoadCancelled
                now_s = time.monotonic()
                if self._bucket.take(num_bytes, now_s=now_s):
                    break
                self._changed.wait(self._bucket.wait_s(num_bytes, now_s=now_s))
            self._num_bytes += num_bytes

    def applied_to(self, make_linear: LinearFactory) -> LinearFactory:
        """Return the factory with this pace: layers are nearly all that a model has."""
        return partial(make_linear, before_rows=self.advance)
