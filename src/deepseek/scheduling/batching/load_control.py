"""The medium and the slow loop of the slack policy: what the signals change, and why.

The fast loop plans single steps from the queue and from what steps cost. Here, twice a second, the
load report bounds what it may do (batch cap, safety margin, holding back), and every ten seconds
names the mode that the model is in. Each signal may be unknown; its rule is silent then. Decisions
depend on the reports and on what `note_out_of_memory` was told alone, so a recorded run replays.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from deepseek.core.decisions import Decision, TimeScale
from deepseek.core.load import DeviceLoad, ModelLoad
from deepseek.core.qos import QoS
from deepseek.scheduling.batching.base import StepLimits

SLOW_INTERVAL_S = 10.0
KV_FULL, KV_RELAXED = 0.9, 0.8
MEMORY_FULL, MEMORY_RELAXED = 0.97, 0.93
MAX_ERROR_RATE = 0.05
MIN_MARGIN, MAX_MARGIN = 0.05, 0.25
HOT_C = 87.0
POWER_AT_LIMIT = 0.98
BANDWIDTH_FULL = 0.9
IDLE_UTILIZATION = 0.1
"""Below this nobody wants the time that a fuller batch would save."""
BUSY_REPORTS = 4
"""In a row, after which an idle device is busy again: a single request makes it busy for one."""
FULL_BATCH = 0.8
_CLOCK_MEMORY = 0.1
"""Weight of the newest report in the clock that predictions have been learned at."""


class Mode(StrEnum):
    """How the load compares with what the device serves."""

    NORMAL = "normal"
    BUSY = "busy"
    OVERLOAD = "overload"


class LoadControl:
    """What the fast loop reads: `cap`, `margin`, `derating`, `may_hold`, `mode`."""

    def __init__(self, model: str, qos: QoS, limits: StepLimits) -> None:
        self._model = model
        self.qos = qos
        self._limits = limits
        self._batch_most = math.inf
        self._pressure_most = math.inf
        self.margin = MIN_MARGIN
        """Part of a predicted time that is kept as a reserve."""
        self.derating = 1.0
        """What predictions are multiplied with, for a clock that has just changed."""
        self.may_hold = True
        """Whether work may be held back to batch better."""
        self.mode = Mode.NORMAL
        self.place_s = 0.0
        """Device time in which a running request ends and makes place for another."""
        self._told_cap = self.cap
        """The batch cap as decisions have told it: small steps are not worth a line each."""
        self._clock: float | None = None
        self._last_waiting = 0
        self._failed_reports = 0
        self._next_slow_s: float | None = None
        self._num_overloaded = self._num_idle = 0
        self._is_idle, self._num_busy = False, 0
        self._ran_out_of_memory = False
        self._found: list[Decision] = []

    @property
    def cap(self) -> int:
        """Sequences that may run at once."""
        most = min(self._batch_most, self._pressure_most, self._limits.max_sequences)
        if self.qos.max_batch_size is not None:
            most = min(most, self.qos.max_batch_size)
        return max(1, int(most))

    def note_out_of_memory(self) -> None:
        """Halve the batch at once; the next report says so."""
        self._halve_batch()
        self._ran_out_of_memory = True

    def adjust(self, load: ModelLoad, device: DeviceLoad, *, now_s: float) -> list[Decision]:
        """Take a report; return what it changed."""
        self._found = []
        if load.service_rate:
            self.place_s = 1 / load.service_rate
        before = _Note(load, device, now_s)
        self._after_faults(before)
        has_halved = bool(self._found)
        self._under_pressure(before)
        self._for_the_clock(before)
        if has_halved:
            self._told_cap = self.cap
        else:
            self._batch_cap(before)
        self._reserve(before)
        self._holding(before)
        self._last_waiting = load.num_waiting
        if self._next_slow_s is None:
            self._next_slow_s = now_s + SLOW_INTERVAL_S
        elif now_s >= self._next_slow_s:
            self._next_slow_s = now_s + SLOW_INTERVAL_S
            self._slowly(before)
        return self._found

    def _halve_batch(self) -> None:
        self._batch_most = max(1.0, min(self._batch_most, self._limits.max_sequences) / 2)

    # the medium loop

    def _after_faults(self, seen: "_Note") -> None:
        if self._ran_out_of_memory:
            self._ran_out_of_memory = False
            seen.tell(self, "halve-batch-cap", f"a step ran out of memory: at most {self.cap} run")
        rate = seen.load.error_rate
        if rate is None or rate <= MAX_ERROR_RATE:
            self._failed_reports = 0
            return
        self._failed_reports += 1
        if self._failed_reports == 1:
            self._halve_batch()
            seen.tell(
                self,
                "halve-batch-cap",
                f"{rate:.0%} of the last steps failed: at most {self.cap} run",
                error_rate=rate,
            )

    def _under_pressure(self, seen: "_Note") -> None:
        """Admit nobody more while memory is nearly full: one more would only preempt another."""
        kv, memory = seen.load.kv_use, seen.device.memory_use
        is_full = (kv or 0.0) > KV_FULL or (memory or 0.0) > MEMORY_FULL
        is_relaxed = (kv or 0.0) < KV_RELAXED and (memory or 0.0) < MEMORY_RELAXED
        if is_full and math.isinf(self._pressure_most):
            self._pressure_most = max(1, seen.load.num_running)
            what = (
                f"{kv:.0%} of the KV cache" if (kv or 0.0) > KV_FULL else f"{memory:.0%} of memory"
            )
            seen.tell(
                self,
                "cap-admission",
                f"{what} is in use: nobody joins the {self.cap} that run",
                kv_use=kv,
                memory_use=memory,
            )
        elif is_relaxed and not math.isinf(self._pressure_most):
            self._pressure_most = math.inf
            seen.tell(self, "free-admission", "memory has room again", kv_use=kv, memory_use=memory)

    def _for_the_clock(self, seen: "_Note") -> None:
        """Expect slower steps before they have been seen; the estimate follows later."""
        ratio, before = seen.device.clock_ratio, self.derating
        if ratio:
            self._clock = ratio if self._clock is None else self._clock
            self.derating = min(2.0, max(1.0, self._clock / ratio))
            self._clock += _CLOCK_MEMORY * (ratio - self._clock)
        elif seen.device.is_throttled:
            self.derating = max(1.0, 1.2 if before == 1.0 else 1 + (before - 1) * 0.9)
        else:
            self.derating = 1.0
        if self.derating >= 1.1 > before:
            seen.tell(
                self,
                "expect-slower-steps",
                f"the device has slowed down: steps are expected to take {self.derating:.2f} times "
                "as long",
                clock_ratio=ratio,
                is_throttled=seen.device.is_throttled,
            )

    def _batch_cap(self, seen: "_Note") -> None:
        load, qos, before = seen.load, self.qos, self.cap
        bandwidth = seen.device.memory_bandwidth_utilization
        step_s, occupancy = load.step_time_s, load.batch_occupancy
        if step_s is not None and step_s > qos.itl_s and load.num_running > 1:
            self._batch_most = max(1.0, min(before, load.num_running) * 0.9)
            action, why = (
                "lower-batch-cap",
                f"a step takes {step_s * 1000:.0f} ms, more than promised",
            )
        elif (
            self._failed_reports == 0
            and load.num_waiting > self._last_waiting
            and (occupancy is None or occupancy * self._limits.max_sequences >= 0.5 * before)
            and (bandwidth is None or bandwidth < BANDWIDTH_FULL)
        ):
            self._batch_most = self._batch_most * 1.25 + 1
            action, why = "raise-batch-cap", f"the queue has grown to {load.num_waiting}"
        elif self._failed_reports == 0 and load.num_waiting == 0:
            self._batch_most = self._batch_most * 1.05 + 0.25
            action, why = "raise-batch-cap", "nobody waits"
        else:
            return
        if self._batch_most >= self._limits.max_sequences:
            self._batch_most = math.inf
        if abs(self.cap - self._told_cap) >= max(1.0, 0.2 * self._told_cap):
            before, self._told_cap = self._told_cap, self.cap
            seen.tell(
                self,
                action,
                f"the batch cap goes from {before} to {self.cap}: {why}",
                step_time_s=step_s,
                num_waiting=load.num_waiting,
                batch_occupancy=occupancy,
                memory_bandwidth_utilization=bandwidth,
            )

    def _reserve(self, seen: "_Note") -> None:
        """Keep more in reserve where deadlines were missed, or the device is at its limits."""
        before, device = self.margin, seen.device
        slack_s, wait_s = seen.load.deadline_slack_s, seen.load.wait_p99_s
        power = None
        if device.power_w is not None and device.power_limit_w:
            power = device.power_w / device.power_limit_w
        least = MIN_MARGIN
        if (device.temperature_c or 0.0) >= HOT_C or (power or 0.0) >= POWER_AT_LIMIT:
            least += 0.05
        is_missed = slack_s is not None and slack_s < 0
        is_slow = wait_s is not None and wait_s > self.qos.ttft_s
        if is_missed or is_slow:
            self.margin = min(MAX_MARGIN, max(least, before + 0.03))
        else:
            self.margin = max(least, before - 0.01)
        if int(self.margin * 10) != int(before * 10) or (before < least):
            seen.tell(
                self,
                "raise-margin" if self.margin > before else "lower-margin",
                f"{self.margin:.0%} of every predicted time is kept in reserve",
                deadline_slack_s=slack_s,
                wait_p99_s=wait_s,
                temperature_c=device.temperature_c,
                power_ratio=power,
            )

    def _holding(self, seen: "_Note") -> None:
        load, before = seen.load, self.may_hold
        if self.qos.max_wait_s <= 0:
            return
        utilization = seen.device.utilization
        oldest_s, rate = load.oldest_wait_s or 0.0, load.arrival_rate
        is_idle = self._is_nearly_idle(utilization)
        is_late = oldest_s > max(self.qos.max_wait_s, 0.5 * self.qos.ttft_s)
        is_alone = rate is not None and rate * self.qos.max_wait_s < 0.02
        self.may_hold = not (is_idle or is_late or is_alone or self.mode is Mode.OVERLOAD)
        if self.may_hold != before:
            why = (
                "requests come often enough to share steps"
                if self.may_hold
                else "the device is nearly idle"
                if is_idle
                else "requests have waited long enough"
                if is_late
                else "hardly any requests come"
                if is_alone
                else "there is more work than the device can do"
            )
            seen.tell(
                self,
                "hold-back" if self.may_hold else "start-at-once",
                f"work is {'held back for fuller steps' if self.may_hold else 'started at once'}: "
                f"{why}",
                utilization=utilization,
                oldest_wait_s=load.oldest_wait_s,
                arrival_rate=rate,
            )

    def _is_nearly_idle(self, utilization: float | None) -> bool:
        """Say whether the device is nearly idle, and has not been busy again for a while."""
        if utilization is None:
            self._is_idle = False
        elif utilization < IDLE_UTILIZATION:
            self._is_idle, self._num_busy = True, 0
        else:
            self._num_busy += 1
            self._is_idle = self._is_idle and self._num_busy < BUSY_REPORTS
        return self._is_idle

    # the slow loop

    def _slowly(self, seen: "_Note") -> None:
        load, before = seen.load, self.mode
        arriving, served = load.arrival_rate, load.service_rate
        # Served per second of device time in batches as they were: fuller ones would serve more.
        pressure = arriving / served if arriving is not None and served else None
        occupancy = load.batch_occupancy
        is_full = (
            occupancy is None or occupancy * self._limits.max_sequences >= FULL_BATCH * self.cap
        )
        if pressure is not None and pressure > 1.0 and (is_full or load.num_waiting > self.cap):
            self.mode = Mode.OVERLOAD
        elif pressure is not None and pressure > 0.8 and load.num_waiting:
            self.mode = Mode.BUSY
        else:
            self.mode = Mode.NORMAL
        signals = {
            "arrival_rate": arriving,
            "service_rate": served,
            "batch_occupancy": occupancy,
            "num_waiting": load.num_waiting,
        }
        if self.mode is not before:
            seen.tell(
                self,
                "change-mode",
                f"the load is {self.mode}, after {before}",
                scale=TimeScale.SLOW,
                **signals,
            )
        self._num_overloaded = self._num_overloaded + 1 if self.mode is Mode.OVERLOAD else 0
        busy = seen.device.loop_utilization
        is_idle = busy is not None and busy < IDLE_UTILIZATION and not load.num_waiting
        self._num_idle = self._num_idle + 1 if is_idle else 0
        if self._num_overloaded == 3:
            seen.tell(
                self,
                "scale-out",
                "for half a minute more has come than this device serves: add a replica",
                scale=TimeScale.SLOW,
                **signals,
            )
        if self._num_idle == 30:
            seen.tell(
                self,
                "scale-in",
                "the device has been nearly idle for five minutes: a replica could go",
                scale=TimeScale.SLOW,
                loop_utilization=busy,
            )


@dataclass(frozen=True, slots=True)
class _Note:
    """A report, and the place where what it leads to is written down."""

    load: ModelLoad
    device: DeviceLoad
    now_s: float

    def tell(
        self,
        control: LoadControl,
        action: str,
        reason: str,
        *,
        scale: TimeScale = TimeScale.MEDIUM,
        **signals: Any,
    ) -> None:
        known = {name: value for name, value in signals.items() if value is not None}
        control._found.append(
            Decision(
                at_s=self.now_s,
                model=self.load.model,
                scale=scale,
                action=action,
                reason=reason,
                signals=known,
            )
        )
