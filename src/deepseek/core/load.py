"""The live signals: what a worker measures of its device and of each model, in one frozen report.

`None` is a signal that is not known here (no sensor, no permission, not measured yet). Whoever
reads one must do without it.
"""

from dataclasses import dataclass

from deepseek.core.residency import Residency


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLoad:
    """One device, as its sensors tell."""

    utilization: float | None = None
    """Part of the last interval in which the device was busy, whoever used it, from 0 to 1."""
    loop_utilization: float | None = None
    """Part of the last interval in which the worker ran steps: its own account, from 0 to 1."""
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    memory_bandwidth_utilization: float | None = None
    """Part of the last interval in which device memory was being read or written, from 0 to 1."""
    temperature_c: float | None = None
    is_throttled: bool | None = None
    """True while the device runs slower than it was asked to, for heat, power or a CPU quota."""
    power_w: float | None = None
    power_limit_w: float | None = None
    clock_mhz: float | None = None
    clock_max_mhz: float | None = None

    @property
    def memory_use(self) -> float | None:
        """Used part of the memory, from 0 to 1."""
        if self.memory_used_bytes is None or not self.memory_total_bytes:
            return None
        return self.memory_used_bytes / self.memory_total_bytes

    @property
    def clock_ratio(self) -> float | None:
        """Clock as a part of the highest one."""
        if self.clock_mhz is None or not self.clock_max_mhz:
            return None
        return self.clock_mhz / self.clock_max_mhz


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoad:
    """One model's part of a `LoadSnapshot`."""

    model: str
    num_waiting: int
    """Requests (an encoder's: sequences) that no step has begun: the queue length."""
    num_running: int
    kv_tokens_used: int
    kv_tokens_cached: int
    """Tokens kept for prefix reuse only; they give way to running requests."""
    kv_tokens_capacity: int
    num_preemptions: int = 0
    prefix_hit_tokens: int = 0
    busy_s: float = 0.0
    """Device time this model has used since the worker started (the step loop's account)."""
    num_steps: int = 0
    oldest_wait_s: float | None = None
    """How long the oldest waiting request has waited; None: nobody waits."""
    wait_p99_s: float | None = None
    """99th percentile of the time between arrival and first step, over the last requests."""
    arrival_rate: float | None = None
    """Requests per second, exponentially averaged; 0 a while after the last one."""
    service_rate: float | None = None
    """Requests finished per second of this model's device time, averaged over that time."""
    batch_occupancy: float | None = None
    """Sequences in a step as a part of the batch cap, averaged over the last steps."""
    step_time_s: float | None = None
    """Time of a step, averaged over the last steps."""
    error_rate: float | None = None
    """Failed steps as a part of the last steps."""
    deadline_slack_s: float | None = None
    """Least time left until a deadline among the waiting and running; negative: missed; None:
    nothing is due."""
    residency: Residency = Residency.READY
    weights_bytes: int | None = None
    """Memory of the device that its weights take now, where models may be absent."""
    host_weights_bytes: int | None = None
    """Memory of the host that a copy of its weights takes beside a GPU, likewise."""
    load_s: float | None = None
    """How long its last load took that somebody waited for; None: there was none."""
    num_loads: int = 0
    """Loads that have ended well, those ahead of any request among them."""
    num_evictions: int = 0
    """Times that it left the device."""
    num_hits: int = 0
    """Requests that found it ready, where models may be absent."""
    num_misses: int = 0
    """Requests that had to wait for a load, or were refused for it."""

    @property
    def kv_use(self) -> float | None:
        """Part of the KV cache that running requests hold, from 0 to 1."""
        if not self.kv_tokens_capacity:
            return None
        return self.kv_tokens_used / self.kv_tokens_capacity


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSnapshot:
    """What a worker is doing, taken between two steps."""

    uptime_s: float
    rss_bytes: int
    models: list[ModelLoad]
    device: DeviceLoad = DeviceLoad()
