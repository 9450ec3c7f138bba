"""The metrics page, read back with Prometheus' own parser."""

import re
from dataclasses import fields
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from deepseek.core.load import DeviceLoad, LoadSnapshot, ModelLoad
from deepseek.core.residency import Residency
from deepseek.telemetry import worker_families
from deepseek.telemetry.metrics import CONTENT_TYPE, Metrics

DOCS = Path(__file__).parents[2] / "docs"


def load(model: str = "chat", **fields: float | Residency) -> ModelLoad:
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


def snapshot(*loads: ModelLoad, device: DeviceLoad | None = None) -> LoadSnapshot:
    return LoadSnapshot(
        uptime_s=12.5, rss_bytes=1 << 20, models=list(loads), device=device or DeviceLoad()
    )


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


def test_every_signal_of_a_model_appears_and_none_that_is_unknown() -> None:
    metrics = Metrics()
    signals = {
        "oldest_wait_s": 0.4,
        "wait_p99_s": 0.25,
        "arrival_rate": 0.0,
        "service_rate": 12.0,
        "batch_occupancy": 0.5,
        "step_time_s": 0.02,
        "error_rate": 0.0,
        "deadline_slack_s": -0.1,
    }
    metrics.observe_snapshot("gpu", snapshot(load("chat", **signals), load("embed")))
    found = samples(metrics)
    for name, value in (
        ("oldest_wait_seconds", 0.4),
        ("wait_p99_seconds", 0.25),
        ("arrivals_per_second", 0.0),
        ("finished_per_device_second", 12.0),
        ("batch_occupancy_ratio", 0.5),
        ("step_seconds", 0.02),
        ("failed_steps_ratio", 0.0),
        ("deadline_slack_seconds", -0.1),
    ):
        assert found[f"deepseek_model_{name}", "chat", "gpu"] == value
        assert (f"deepseek_model_{name}", "embed", "gpu") not in found


def test_every_signal_of_a_device_appears_and_none_that_is_unknown() -> None:
    metrics = Metrics()
    device = DeviceLoad(
        utilization=0.75,
        loop_utilization=0.5,
        memory_used_bytes=3 << 30,
        memory_total_bytes=4 << 30,
        memory_bandwidth_utilization=0.0,
        temperature_c=64.5,
        is_throttled=True,
        power_w=410.0,
        power_limit_w=700.0,
        clock_mhz=1500.0,
        clock_max_mhz=1980.0,
    )
    metrics.observe_snapshot("gpu", snapshot(device=device))
    metrics.observe_snapshot("cpu", snapshot(device=DeviceLoad(is_throttled=False)))
    found = {key: value for key, value in samples(metrics).items() if "deepseek_device" in key[0]}
    assert found == {
        ("deepseek_device_utilization_ratio", "gpu"): 0.75,
        ("deepseek_device_loop_utilization_ratio", "gpu"): 0.5,
        ("deepseek_device_memory_used_bytes", "gpu"): 3 << 30,
        ("deepseek_device_memory_total_bytes", "gpu"): 4 << 30,
        ("deepseek_device_memory_bandwidth_utilization_ratio", "gpu"): 0.0,
        ("deepseek_device_temperature_celsius", "gpu"): 64.5,
        ("deepseek_device_throttled", "gpu"): 1.0,
        ("deepseek_device_power_watts", "gpu"): 410.0,
        ("deepseek_device_power_limit_watts", "gpu"): 700.0,
        ("deepseek_device_clock_hertz", "gpu"): 1.5e9,
        ("deepseek_device_clock_max_hertz", "gpu"): 1.98e9,
        ("deepseek_device_throttled", "cpu"): 0.0,
    }


def test_every_field_of_a_report_has_its_metric_and_its_document() -> None:
    shown = {
        family.field
        for families in (
            worker_families.POOL_GAUGES,
            worker_families.DEVICE_GAUGES,
            worker_families.MODEL_GAUGES,
            worker_families.MODEL_COUNTERS,
        )
        for family in families
    }
    reported = {f.name for cls in (LoadSnapshot, DeviceLoad, ModelLoad) for f in fields(cls)}
    assert shown == reported - {"model", "models", "device", "residency"}
    documented = set(re.findall(r"`(\w+)`", (DOCS / "signals.md").read_text()))
    assert shown | {"residency"} <= documented


def test_a_model_is_in_one_state_at_a_time() -> None:
    metrics = Metrics()
    metrics.observe_snapshot("cpu", snapshot(load("a"), load("b", residency=Residency.DISK)))
    found = {key: value for key, value in samples(metrics).items() if "residency" in key[0]}
    name = "deepseek_model_residency"
    assert {key for key, value in found.items() if key[0] == name and value == 1} == {
        (name, "a", "cpu", "ready"),
        (name, "b", "cpu", "disk"),
    }
    assert sum(key[0] == name for key in found) == 2 * len(Residency)


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
        assert re.fullmatch(r"deepseek_[a-z0-9_]+", name)
        assert (kind == "counter") == name.endswith("_total")
        assert "_ms" not in name
    assert not re.search(r"_created\b", page)
    assert CONTENT_TYPE.startswith("text/plain")


def test_every_metric_is_documented() -> None:
    page = every_metric().render().decode()
    names = set(re.findall(r"^# TYPE (\S+) ", page, re.MULTILINE))
    documented = set(re.findall(r"`(deepseek_[a-z0-9_]+)`", (DOCS / "metrics.md").read_text()))
    assert documented == names


def every_metric() -> Metrics:
    metrics = Metrics()
    metrics.observe_snapshot("gpu", snapshot(load()))
    metrics.model("chat")
    return metrics
