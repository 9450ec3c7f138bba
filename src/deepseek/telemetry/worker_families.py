"""Which metric shows which field of a worker's load report, and in which unit."""

from typing import NamedTuple


class Family(NamedTuple):
    """A metric that shows one field of a report; left out where the field is unknown."""

    field: str
    name: str
    help: str
    scale: float = 1.0

    @property
    def about(self) -> tuple[str, str]:
        """Name and help, as a metric family takes them."""
        return self.name, self.help


POOL_GAUGES = [
    Family(
        "uptime_s", "deepseek_worker_uptime_seconds", "Seconds since the worker loaded its models."
    ),
    Family("rss_bytes", "deepseek_worker_resident_memory_bytes", "Resident memory of the worker."),
]
DEVICE_GAUGES = [
    Family(
        "utilization",
        "deepseek_device_utilization_ratio",
        "Part of the time in which the device was busy, whoever used it.",
    ),
    Family(
        "loop_utilization",
        "deepseek_device_loop_utilization_ratio",
        "Part of the time in which the worker ran steps, by its own account.",
    ),
    Family("memory_used_bytes", "deepseek_device_memory_used_bytes", "Device memory in use."),
    Family("memory_total_bytes", "deepseek_device_memory_total_bytes", "Device memory there is."),
    Family(
        "memory_bandwidth_utilization",
        "deepseek_device_memory_bandwidth_utilization_ratio",
        "Part of the time in which device memory was being read or written.",
    ),
    Family("temperature_c", "deepseek_device_temperature_celsius", "Temperature of the device."),
    Family(
        "is_throttled",
        "deepseek_device_throttled",
        "1 while heat, power or a quota slows the device down, else 0.",
    ),
    Family("power_w", "deepseek_device_power_watts", "Power that the device draws."),
    Family("power_limit_w", "deepseek_device_power_limit_watts", "Power that it may draw."),
    Family("clock_mhz", "deepseek_device_clock_hertz", "Clock of the device.", 1e6),
    Family("clock_max_mhz", "deepseek_device_clock_max_hertz", "Highest clock it has.", 1e6),
]
MODEL_GAUGES = [
    Family("num_waiting", "deepseek_model_waiting_requests", "Requests in the worker's queue."),
    Family("num_running", "deepseek_model_running_requests", "Requests in the running batch."),
    Family(
        "oldest_wait_s",
        "deepseek_model_oldest_wait_seconds",
        "How long the oldest waiting request has waited.",
    ),
    Family(
        "wait_p99_s",
        "deepseek_model_wait_p99_seconds",
        "99th percentile of the time between arrival and first step.",
    ),
    Family(
        "arrival_rate",
        "deepseek_model_arrivals_per_second",
        "Requests that arrive per second, averaged over seconds.",
    ),
    Family(
        "service_rate",
        "deepseek_model_finished_per_device_second",
        "Requests finished per second of this model's device time.",
    ),
    Family(
        "batch_occupancy",
        "deepseek_model_batch_occupancy_ratio",
        "Sequences in a step as a part of the batch cap, averaged over the last steps.",
    ),
    Family(
        "step_time_s",
        "deepseek_model_step_seconds",
        "Time of a step, averaged over the last steps.",
    ),
    Family(
        "error_rate",
        "deepseek_model_failed_steps_ratio",
        "Failed steps as a part of the last steps.",
    ),
    Family(
        "deadline_slack_s",
        "deepseek_model_deadline_slack_seconds",
        "Least time left until a deadline; negative where one was missed.",
    ),
    Family(
        "kv_tokens_used", "deepseek_model_kv_used_tokens", "KV-cache tokens of running requests."
    ),
    Family(
        "kv_tokens_cached",
        "deepseek_model_kv_cached_tokens",
        "KV-cache tokens kept for prefix reuse only; they give way to running requests.",
    ),
    Family("kv_tokens_capacity", "deepseek_model_kv_capacity_tokens", "KV-cache tokens that fit."),
    Family(
        "weights_bytes",
        "deepseek_model_weights_bytes",
        "Memory that the model's weights take now, in pools whose models may be absent.",
    ),
    Family(
        "host_weights_bytes",
        "deepseek_model_host_weights_bytes",
        "Memory of the host that a copy of the model's weights takes beside a GPU.",
    ),
    Family(
        "load_s",
        "deepseek_model_load_seconds",
        "How long the model's last load took that somebody waited for.",
    ),
]
MODEL_COUNTERS = [
    Family("num_loads", "deepseek_model_loads_total", "Times the model was loaded on the way."),
    Family("num_evictions", "deepseek_model_evictions_total", "Times the model left the device."),
    Family(
        "num_hits",
        "deepseek_model_residency_hits_total",
        "Requests that found the model ready, in pools whose models may be absent.",
    ),
    Family(
        "num_misses",
        "deepseek_model_residency_misses_total",
        "Requests that waited for the model's load, or were refused for it.",
    ),
    Family("busy_s", "deepseek_model_busy_seconds_total", "Device time this model has used."),
    Family("num_steps", "deepseek_model_steps_total", "Engine steps run for this model."),
    Family(
        "num_preemptions",
        "deepseek_model_preemptions_total",
        "Generations put back into the queue because the KV cache was full.",
    ),
    Family(
        "prefix_hit_tokens",
        "deepseek_model_prefix_hit_tokens_total",
        "Prompt tokens found in the prefix cache instead of computed.",
    ),
]
