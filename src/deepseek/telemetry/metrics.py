"""What `/metrics` shows, in Prometheus' text format; `docs/metrics.md` explains every name.

Each `Metrics` owns a registry, so that two platforms in one process do not mix. Label values are
bounded: a `model` is only ever the name of a deployment, a `route` only ever one of the gateway's.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import Metric

from deepseek.core.load import LoadSnapshot
from deepseek.telemetry.workers import WorkerCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 600)
_TOKEN_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetrics:
    """One language model's series; looked up once per request, then used per token."""

    time_to_first_token: Histogram
    inter_token_latency: Histogram
    prompt_tokens: Counter
    completion_tokens: Counter
    cached_tokens: Counter


class Metrics:
    """All series of one platform; every method is cheap and none blocks."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._workers = WorkerCollector()
        self.registry.register(self._workers)
        ProcessCollector(namespace="deepseek", registry=self.registry)
        self._requests = self._counter(
            "deepseek_requests_total",
            "Requests answered, by status; 499 is a client that left before its answer.",
            "route", "model", "code",
        )  # fmt: skip
        self._in_flight = Gauge(
            "deepseek_requests_in_flight",
            "Requests whose answer is not complete.",
            ["route"],
            registry=self.registry,
        )
        self._duration = self._histogram(
            "deepseek_request_duration_seconds",
            "From the request's headers to the end of its answer.",
            "route", "model", buckets=_LATENCY_BUCKETS_S,
        )  # fmt: skip
        self._stream_errors = self._counter(
            "deepseek_stream_errors_total",
            "Streams that ended with an error event after their status was sent.",
            "model", "code",
        )  # fmt: skip
        self._first_token = self._histogram(
            "deepseek_time_to_first_token_seconds",
            "From the request's headers to the first token.",
            "model", buckets=_LATENCY_BUCKETS_S,
        )  # fmt: skip
        self._inter_token = self._histogram(
            "deepseek_inter_token_latency_seconds",
            "Time per token between two deltas of one answer.",
            "model", buckets=_TOKEN_BUCKETS_S,
        )  # fmt: skip
        self._prompt = self._counter("deepseek_prompt_tokens_total", "Tokens read.", "model")
        self._completion = self._counter(
            "deepseek_completion_tokens_total", "Tokens generated.", "model"
        )
        self._cached = self._counter(
            "deepseek_cached_prompt_tokens_total",
            "Prompt tokens of requests that the prefix cache held already.",
            "model",
        )
        self._models: dict[str, ModelMetrics] = {}

    def request_started(self, route: str) -> None:
        """Count a request in; `request_finished` must follow."""
        self._in_flight.labels(route).inc()

    def request_finished(self, route: str, *, model: str, code: int, duration_s: float) -> None:
        """Count a request out. `model` is a deployment's name, or empty where none was found."""
        self._in_flight.labels(route).dec()
        self._requests.labels(route, model, str(code)).inc()
        self._duration.labels(route, model).observe(duration_s)

    def stream_failed(self, *, model: str, code: str) -> None:
        """Count a stream that ended with an error event."""
        self._stream_errors.labels(model, code).inc()

    def encoded(self, model: str, *, num_tokens: int) -> None:
        """Count what an encoder read."""
        self._prompt.labels(model).inc(num_tokens)

    def model(self, name: str) -> ModelMetrics:
        """Return the series of a language model; never call this with a name a client made up."""
        found = self._models.get(name)
        if found is None:
            found = self._models[name] = ModelMetrics(
                time_to_first_token=self._first_token.labels(name),
                inter_token_latency=self._inter_token.labels(name),
                prompt_tokens=self._prompt.labels(name),
                completion_tokens=self._completion.labels(name),
                cached_tokens=self._cached.labels(name),
            )
        return found

    def observe_snapshot(self, pool: str, snapshot: LoadSnapshot) -> None:
        """Show a worker's load report until the next one; the pool counts as up."""
        self._workers.observe(pool, snapshot)

    def worker_restarted(self, pool: str) -> None:
        """Count one restart of a pool's worker."""
        self._workers.restarted(pool)

    def worker_up(self, pool: str, up: bool) -> None:
        """Say whether a pool's worker serves."""
        self._workers.set_up(pool, up=up)

    def render(self) -> bytes:
        """Return the page that Prometheus scrapes (`CONTENT_TYPE`)."""
        return generate_latest(_WithoutCreated(self.registry))

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(name, about, labels, registry=self.registry)

    def _histogram(
        self, name: str, about: str, *labels: str, buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(name, about, labels, buckets=buckets, registry=self.registry)


class _WithoutCreated(CollectorRegistry):
    """A registry's page without the `_created` series, which double its length and serve nobody."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric
