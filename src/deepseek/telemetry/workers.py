"""The workers' part of `/metrics`: each pool's latest load report, as Prometheus families.

A worker counts from its own start, so its counters begin again at zero after a restart, as
Prometheus expects of a restarted process. A pool whose worker is down shows no load at all.
"""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deepseek.core.load import LoadSnapshot, ModelLoad

_POOL_GAUGES = {
    "uptime_s": ("deepseek_worker_uptime_seconds", "Seconds since the worker loaded its models."),
    "rss_bytes": ("deepseek_worker_resident_memory_bytes", "Resident memory of the worker."),
}
_MODEL_GAUGES = {
    "num_waiting": ("deepseek_model_waiting_requests", "Requests in the worker's queue."),
    "num_running": ("deepseek_model_running_requests", "Requests in the running batch."),
    "kv_tokens_used": ("deepseek_model_kv_used_tokens", "KV-cache tokens of running requests."),
    "kv_tokens_cached": (
        "deepseek_model_kv_cached_tokens",
        "KV-cache tokens kept for prefix reuse only; they give way to running requests.",
    ),
    "kv_tokens_capacity": ("deepseek_model_kv_capacity_tokens", "KV-cache tokens that fit."),
}
_MODEL_COUNTERS = {
    "busy_s": ("deepseek_model_busy_seconds_total", "Device time this model has used."),
    "num_steps": ("deepseek_model_steps_total", "Engine steps run for this model."),
    "num_preemptions": (
        "deepseek_model_preemptions_total",
        "Generations put back into the queue because the KV cache was full.",
    ),
    "prefix_hit_tokens": (
        "deepseek_model_prefix_hit_tokens_total",
        "Prompt tokens found in the prefix cache instead of computed.",
    ),
}


class WorkerCollector(Collector):
    """Turns the latest load reports into metrics when `/metrics` is read."""

    def __init__(self) -> None:
        self._snapshots: dict[str, LoadSnapshot] = {}
        self._is_up: dict[str, bool] = {}
        self._restarts: dict[str, int] = {}

    def observe(self, pool: str, snapshot: LoadSnapshot) -> None:
        """Keep the report; it replaces the pool's earlier one."""
        self._snapshots[pool] = snapshot
        self.set_up(pool, up=True)

    def restarted(self, pool: str) -> None:
        """Count one restart of the pool's worker."""
        self._restarts[pool] = self._restarts.get(pool, 0) + 1

    def set_up(self, pool: str, *, up: bool) -> None:
        """Say whether the pool's worker runs; the load of one that does not is forgotten."""
        self._is_up[pool] = up
        self._restarts.setdefault(pool, 0)
        if not up:
            self._snapshots.pop(pool, None)

    def collect(self) -> Iterator[Metric]:
        """Yield every family; called by the registry."""
        yield _gauge(
            ("deepseek_worker_up", "1 while the pool's worker process serves, else 0."),
            ["pool"],
            (([pool], float(up)) for pool, up in self._is_up.items()),
        )
        yield _counter(
            ("deepseek_worker_restarts_total", "Times the pool's worker was started again."),
            ["pool"],
            (([pool], count) for pool, count in self._restarts.items()),
        )
        for field, about in _POOL_GAUGES.items():
            yield _gauge(about, ["pool"], self._of_pools(field))
        for field, about in _MODEL_GAUGES.items():
            yield _gauge(about, ["pool", "model"], self._of_models(field))
        for field, about in _MODEL_COUNTERS.items():
            yield _counter(about, ["pool", "model"], self._of_models(field))

    def _of_pools(self, field: str) -> Iterator[tuple[list[str], float]]:
        for pool, snapshot in self._snapshots.items():
            yield [pool], float(getattr(snapshot, field))

    def _of_models(self, field: str) -> Iterator[tuple[list[str], float]]:
        for pool, snapshot in self._snapshots.items():
            for load in _by_model(snapshot.models).values():
                yield [pool, load.model], float(getattr(load, field))


def _by_model(loads: Iterable[ModelLoad]) -> Mapping[str, ModelLoad]:
    """Drop a model reported twice: a duplicate series would make the whole page unreadable."""
    return {load.model: load for load in loads}


def _gauge(
    about: tuple[str, str], labels: list[str], samples: Iterable[tuple[list[str], float]]
) -> Metric:
    family = GaugeMetricFamily(*about, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _counter(
    about: tuple[str, str], labels: list[str], samples: Iterable[tuple[list[str], float]]
) -> Metric:
    family = CounterMetricFamily(*about, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family
