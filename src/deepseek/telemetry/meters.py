"""What the step loop counts of each model and of the device, and the signals that follow from it.

Meters are pure: they hold no clock, every call says what time it is, and the same calls give the
same readings. `arrived`, `began`, `finished` and `stepped` are called per request and per step and
cost well under a microsecond; only `read` does work, once per load report. Not for several threads.

Two kinds of averages, because they answer different questions:

* Arrivals fade with *time*: what comes does not depend on what the device does, and a model that
  nobody asks for any more must read as idle.
* Steps fade with *device time*: what a step costs, and how many requests a second of the device
  finishes, is no other after an hour in which nothing ran.
"""

import math
from collections import deque
from typing import TypedDict

_ARRIVAL_HALF_LIFE_S = 5.0
"""Long enough to average over a burst, short enough to follow one within a few reports."""
_STEP_HALF_LIFE_S = 2.0
"""Of device time: about 200 steps of 10 ms."""
_SERVICE_HALF_LIFE_S = 30.0
"""Of device time: an answer lives for seconds, and the rate needs several that have ended."""
_WAIT_WINDOW_S = 30.0
_MAX_WAITS = 1024
"""Ten in the tail that the 99th percentile looks at; sorted in about 0.1 ms."""
_SHORTEST_S = 1.0
"""A rate is taken over this long at least: one arrival in the first millisecond is no flood."""


class MeteredSignals(TypedDict):
    """The fields of a `ModelLoad` that a meter knows, to be put in with `dataclasses.replace`."""

    arrival_rate: float
    service_rate: float | None
    wait_p99_s: float | None
    batch_occupancy: float | None
    step_time_s: float | None
    error_rate: float | None


class ModelMeter:
    """One model's signals, from what the step loop tells."""

    def __init__(
        self,
        started_s: float,
        *,
        arrival_half_life_s: float = _ARRIVAL_HALF_LIFE_S,
        step_half_life_s: float = _STEP_HALF_LIFE_S,
        service_half_life_s: float = _SERVICE_HALF_LIFE_S,
        wait_window_s: float = _WAIT_WINDOW_S,
    ) -> None:
        """Start to count at `started_s`, on the clock of all later calls."""
        self._arrivals = FadingRate(started_s, half_life_s=arrival_half_life_s)
        self._service = _Service(half_life_s=service_half_life_s)
        self._waits: deque[tuple[float, float]] = deque(maxlen=_MAX_WAITS)
        self._wait_window_s = wait_window_s
        self._step_decay = math.log(2) / step_half_life_s
        self._steps = self._step_s = self._occupied = self._failed = 0.0

    def arrived(self, now_s: float) -> None:
        """Count a request in (an encoder's: a sequence)."""
        self._arrivals.add(now_s)

    def began(self, now_s: float, *, wait_s: float) -> None:
        """Keep how long a request had waited when its first step began."""
        self._waits.append((now_s, wait_s))

    def finished(self) -> None:
        """Count a request out; it belongs to the next `stepped`."""
        self._service.num_finished += 1

    def stepped(
        self, seconds: float, *, num_sequences: int, cap: int, is_failed: bool = False
    ) -> None:
        """Account one step: its device time, and its sequences of the `cap` it might have held."""
        kept = math.exp(-self._step_decay * seconds)
        self._steps = self._steps * kept + 1.0
        self._step_s = self._step_s * kept + seconds
        self._occupied = self._occupied * kept + num_sequences / cap
        self._failed = self._failed * kept + is_failed
        self._service.stepped(seconds)

    def read(self, now_s: float) -> MeteredSignals:
        """Return the signals as of now; what has not been seen yet is None. Changes nothing."""
        return MeteredSignals(
            arrival_rate=self._arrivals.read(now_s),
            service_rate=self._service.rate,
            wait_p99_s=self._wait_p99_s(now_s),
            batch_occupancy=self._per_step(self._occupied),
            step_time_s=self._per_step(self._step_s),
            error_rate=self._per_step(self._failed),
        )

    def _wait_p99_s(self, now_s: float) -> float | None:
        oldest_s = now_s - self._wait_window_s
        waits = sorted(wait_s for began_s, wait_s in self._waits if began_s >= oldest_s)
        return waits[math.ceil(0.99 * len(waits)) - 1] if waits else None

    def _per_step(self, total: float) -> float | None:
        return total / self._steps if self._steps else None


class FadingRate:
    """Events per second, each weighing half as much after every half-life."""

    __slots__ = ("_at_s", "_decay", "_started_s", "_weight")

    def __init__(self, started_s: float, *, half_life_s: float) -> None:
        """Start to count at `started_s`."""
        self._started_s = self._at_s = started_s
        self._decay = math.log(2) / half_life_s
        self._weight = 0.0

    def add(self, now_s: float) -> None:
        """Count one event. One that is told late, after a younger one, counts as of then."""
        age_s = now_s - self._at_s
        if age_s > 0:
            self._weight *= math.exp(-self._decay * age_s)
            self._at_s = now_s
        self._weight += 1.0

    def read(self, now_s: float) -> float:
        """Return the rate as of now; it falls towards 0 while nothing happens."""
        faded = self._weight * math.exp(-self._decay * max(now_s - self._at_s, 0.0))
        seen_s = max(now_s - self._started_s, _SHORTEST_S)
        # Of a long past, events at rate r weigh r / decay; of `seen_s` only this part of that.
        return faded * self._decay / -math.expm1(-self._decay * seen_s)


class _Service:
    """Requests finished per second of device time."""

    __slots__ = ("_busy_s", "_decay", "_finished", "num_finished")

    def __init__(self, *, half_life_s: float) -> None:
        self._decay = math.log(2) / half_life_s
        self._busy_s = self._finished = 0.0
        self.num_finished = 0
        """Since the last step was accounted."""

    def stepped(self, seconds: float) -> None:
        kept = math.exp(-self._decay * seconds)
        self._busy_s = self._busy_s * kept + seconds
        self._finished = self._finished * kept + self.num_finished
        self.num_finished = 0

    @property
    def rate(self) -> float | None:
        """None until something has finished: the first answer is not there yet, not slow."""
        if not self._finished or not self._busy_s:
            return None
        return self._finished / self._busy_s


class DeviceBusy:
    """The part of the time in which the step loop ran steps: the device's use by this worker.

    A sensor's utilization counts what everybody does with the device; and a GPU counts as utilized
    while any kernel runs, a CPU pool while its threads spin. This account is the worker's own.
    """

    __slots__ = ("_busy_s", "_latest", "_since_s")

    def __init__(self, started_s: float) -> None:
        """Start to count at `started_s`, on the clock of all later calls."""
        self._since_s = started_s
        self._busy_s = 0.0
        self._latest: float | None = None

    @property
    def latest(self) -> float:
        """What the last reading said; 0 before any."""
        return self._latest or 0.0

    def stepped(self, seconds: float) -> None:
        """Account the device time of one step, whichever model's."""
        self._busy_s += seconds

    def read(self, now_s: float) -> float | None:
        """Return the busy part of the time since the last reading, and begin the next interval.

        Steps are timed one by one and reports come between two of them, so that no step counts
        half; rounding may not lead above 1. Read again at the same time, it says the same.
        """
        seconds = now_s - self._since_s
        if seconds > 0:
            self._latest = min(self._busy_s / seconds, 1.0)
            self._since_s, self._busy_s = now_s, 0.0
        return self._latest
