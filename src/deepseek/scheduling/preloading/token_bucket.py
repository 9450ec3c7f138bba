"""How fast preloading may be: a bucket that fills with bytes over time."""

import math


class TokenBucket:
    """Hands out `bytes_per_s` on average, `burst_bytes` at once after a pause; begins full."""

    def __init__(self, *, bytes_per_s: float, burst_bytes: int) -> None:
        """`bytes_per_s`: infinite is no limit, zero none at all; `burst_bytes`: more than zero."""
        if not (bytes_per_s >= 0 and burst_bytes > 0):
            raise ValueError(f"a bucket of {burst_bytes} bytes, {bytes_per_s:g} bytes/s")
        self._bytes_per_s = bytes_per_s
        self._burst_bytes = burst_bytes
        self._level = float(burst_bytes)
        self._filled_s = -math.inf

    def take(self, num_bytes: int, *, now_s: float) -> bool:
        """Take so many bytes if they are there; say whether they were.

        What is larger than the burst is given from a full bucket, and leaves a debt that is paid
        before the next: the mean rate holds for chunks of any size.
        """
        if self.wait_s(num_bytes, now_s=now_s) > 0:
            return False
        if not math.isinf(self._bytes_per_s):
            self._level -= num_bytes
        return True

    def wait_s(self, num_bytes: int, *, now_s: float) -> float:
        """Return in how many seconds `take` would say yes; 0: now, infinite: never."""
        self._fill(now_s)
        missing = min(num_bytes, self._burst_bytes) - self._level
        if missing <= 0 or math.isinf(self._bytes_per_s):
            return 0.0
        return missing / self._bytes_per_s if self._bytes_per_s else math.inf

    def reconfigure(self, *, bytes_per_s: float, now_s: float) -> None:
        """Fill at another rate from now on."""
        if not bytes_per_s >= 0:
            raise ValueError(f"a bucket that fills by {bytes_per_s:g} bytes/s")
        self._fill(now_s)
        self._bytes_per_s = bytes_per_s

    def _fill(self, now_s: float) -> None:
        """Add what has come since the last call; a clock that goes back adds nothing."""
        if now_s <= self._filled_s:
            return
        if not (math.isinf(self._filled_s) or math.isinf(self._bytes_per_s)):
            added = (now_s - self._filled_s) * self._bytes_per_s
            # A rest of less than a byte is rounding, and would be waited for in vain.
            self._level = min(float(self._burst_bytes), self._level + added + 1e-6)
        self._filled_s = now_s
