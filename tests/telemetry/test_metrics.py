"""The metrics page, read back with Prometheus' own parser."""

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from deepseek.core.load import LoadSnapshot, ModelLoad
from deepseek.telemetry.metrics import CONTENT_TYPE, Metrics

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def load(model: str = "chat", **fields: float) -> ModelLoad:
    values = {
        "num_waiting": 3,
        "num_running": 2,
        "kv_tokens_used": 100,
        "kv_tokens_cached": 40,
        "kv_tokens_capacity": 4096,
        "busy_s": 1.5,
        "num_steps": 7,
        "num_preemptions": 1,
        "prefix_hit_tokens": 64,
    }
    return ModelLoad(model=model, **{**values, **fields})  # type: ignore[arg-type]


def snapshot(*loads: ModelLoad) -> LoadSnapshot:
    return LoadSnapshot(uptime_s=12.5, rss_bytes=1 << 20, models=list(loads))


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return the page's samples by name and label values in the order of the label names."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = [value for _, value in sorted(sample.labels.items())]
            found[(sample.name, *labels)] = sample.value
    return found


def test_a_load_report_appears_by_pool_and_model() -> None:
    metrics = Metrics()
    metrics.observe_snapshot("gpu", snapshot(load("chat"), load("embed", num_waiting=0)))
    found = samples(metrics)
    assert found["deepseek_model_waiting_requests", "chat", "gpu"] == 3
    assert found["deepseek_model_waiting_requests", "embed", "gpu"] == 0
    assert found["deepseek_model_running_requests", "chat", "gpu"] == 2
    assert found["deepseek_model_kv_used_tokens", "chat", "gpu"] == 100
    assert found["deepseek_model_kv_cached_tokens", "chat", "gpu"] == 40
    assert found["deepseek_model_kv_capacity_tokens", "chat", "gpu"] == 4096
    assert found["deepseek_model_busy_seconds_total", "chat", "gpu"] == 1.5
    assert found["deepseek_model_steps_total", "chat", "gpu"] == 7
    assert found["deepseek_model_preemptions_total", "chat", "gpu"] == 1
    assert found["deepseek_model_prefix_hit_tokens_total", "chat", "gpu"] == 64
    assert found["deepseek_worker_up", "gpu"] == 1
    assert found["deepseek_worker_uptime_seconds", "gpu"] == 12.5
    assert found["deepseek_worker_resident_memory_bytes", "gpu"] == 1 << 20


def test_a_new_report_replaces_the_old_one() -> None:
    metrics = Metrics()
    metrics.observe_snapshot("gpu", snapshot(load("a"), load("b")))
    metrics.observe_snapshot("gpu", snapshot(load("a", num_waiting=9)))
    found = samples(metrics)
    assert found["deepseek_model_waiting_requests", "a", "gpu"] == 9
    assert ("deepseek_model_waiting_requests", "b", "gpu") not in found


def test_a_worker_that_is_down_shows_no_load_but_its_restarts() -> None:
    metrics = Metrics()
    metrics.observe_snapshot("gpu", snapshot(load()))
    metrics.worker_up("gpu", False)
    metrics.worker_restarted("gpu")
    metrics.worker_restarted("gpu")
    found = samples(metrics)
    assert found["deepseek_worker_up", "gpu"] == 0
    assert found["deepseek_worker_restarts_total", "gpu"] == 2
    assert ("deepseek_model_waiting_requests", "chat", "gpu") not in found


def test_a_model_reported_twice_makes_one_series() -> None:
    metrics = Metrics()
    metrics.observe_snapshot("gpu", snapshot(load(num_waiting=1), load(num_waiting=2)))
    page = metrics.render().decode()
    assert page.count('deepseek_model_waiting_requests{model="chat",pool="gpu"}') == 1


def test_requests_are_counted_in_and_out() -> None:
    metrics = Metrics()
    metrics.request_started("/v1/models")
    assert samples(metrics)["deepseek_requests_in_flight", "/v1/models"] == 1
    metrics.request_finished("/v1/models", model="", code=200, duration_s=0.02)
    found = samples(metrics)
    assert found["deepseek_requests_in_flight", "/v1/models"] == 0
    assert found["deepseek_requests_total", "200", "", "/v1/models"] == 1
    assert found["deepseek_request_duration_seconds_sum", "", "/v1/models"] == 0.02


def test_two_platforms_in_one_process_do_not_mix() -> None:
    one, other = Metrics(), Metrics()
    one.model("a").prompt_tokens.inc(5)
    assert samples(one)["deepseek_prompt_tokens_total", "a"] == 5
    assert ("deepseek_prompt_tokens_total", "a") not in samples(other)


def test_names_follow_the_conventions_of_prometheus() -> None:
    page = every_metric().render().decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE))
    assert kinds
    for name, kind in kinds.items():
        assert re.fullmatch(r"deepseek_[a-z_]+", name)
        assert (kind == "counter") == name.endswith("_total")
        assert "_ms" not in name
    assert not re.search(r"_created\b", page)
    assert CONTENT_TYPE.startswith("text/plain")


def test_every_metric_is_documented() -> None:
    page = every_metric().render().decode()
    names = set(re.findall(r"^# TYPE (\S+) ", page, re.MULTILINE))
    documented = set(re.findall(r"`(deepseek_[a-z_]+)`", DOCS.read_text()))
    assert documented == names


def every_metric() -> Metrics:
    metrics = Metrics()
    metrics.observe_snapshot("gpu", snapshot(load()))
    metrics.model("chat")
    return metrics
