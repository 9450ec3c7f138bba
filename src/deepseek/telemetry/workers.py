"""The workers' part of `/metrics`: each pool's latest load report, as Prometheus families.

A worker counts from its own start, so its counters begin again at zero after a restart, as
Prometheus expects of a restarted process. A pool whose worker is down shows no load at all, and a
signal that is unknown is not on the page.
"""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deepseek.core.load import DeviceLoad, LoadSnapshot, ModelLoad
from deepseek.core.residency import Residency
from deepseek.telemetry.worker_families import (
    DEVICE_GAUGES,
    MODEL_COUNTERS,
    MODEL_GAUGES,
    POOL_GAUGES,
    Family,
)

_Sample = tuple[list[str], float]


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
        yield _gauge(
            ("deepseek_model_residency", "1 for where the model is, 0 for where it is not."),
            ["pool", "model", "state"],
            self._residencies(),
        )
        for family in POOL_GAUGES:
            yield _gauge(family.about, ["pool"], self._of_pools(family))
        for family in DEVICE_GAUGES:
            yield _gauge(family.about, ["pool"], self._of_devices(family))
        for family in MODEL_GAUGES:
            yield _gauge(family.about, ["pool", "model"], self._of_models(family))
        for family in MODEL_COUNTERS:
            yield _counter(family.about, ["pool", "model"], self._of_models(family))

    def _residencies(self) -> Iterator[_Sample]:
        for pool, snapshot in self._snapshots.items():
            for load in _by_model(snapshot.models).values():
                for state in Residency:
                    yield [pool, load.model, state.value], float(load.residency is state)

    def _of_pools(self, family: Family) -> Iterator[_Sample]:
        for pool, snapshot in self._snapshots.items():
            yield from _known([pool], snapshot, family)

    def _of_devices(self, family: Family) -> Iterator[_Sample]:
        for pool, snapshot in self._snapshots.items():
            yield from _known([pool], snapshot.device, family)

    def _of_models(self, family: Family) -> Iterator[_Sample]:
        for pool, snapshot in self._snapshots.items():
            for load in _by_model(snapshot.models).values():
                yield from _known([pool, load.model], load, family)


def _known(
    labels: list[str], report: LoadSnapshot | DeviceLoad | ModelLoad, family: Family
) -> Iterator[_Sample]:
    """Yield the field's value, or nothing where it is unknown: 0 would be a lie."""
    value = getattr(report, family.field)
    if value is not None:
        yield labels, float(value) * family.scale


def _by_model(loads: Iterable[ModelLoad]) -> Mapping[str, ModelLoad]:
    """Drop a model reported twice: a duplicate series would make the whole page unreadable."""
    return {load.model: load for load in loads}


def _gauge(about: tuple[str, str], labels: list[str], samples: Iterable[_Sample]) -> Metric:
    family = GaugeMetricFamily(*about, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _counter(about: tuple[str, str], labels: list[str], samples: Iterable[_Sample]) -> Metric:
    family = CounterMetricFamily(*about, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family
