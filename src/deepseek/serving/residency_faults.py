"""What is wrong with the settings that let models come and go, where no single one shows it."""

from collections.abc import Iterator, Mapping
from typing import Any

from deepseek.core.errors import ConfigurationError
from deepseek.core.spellings import spelling_of, value_of
from deepseek.scheduling.preloading.registry import preloading_policy_names
from deepseek.serving.qos_faults import runs_on_vllm
from deepseek.serving.settings import ModelSettings
from deepseek.weights.model_directory import ModelDirectory

_VLLM = "vLLM does not let models come and go; leave this out of a model that runs on it"
_NO_GPU = (
    "is for pools on a GPU; on a CPU the host's memory is the device: leave it out and give "
    "`weights_bytes` what models may take"
)

Found = tuple[tuple[str, ...], str]
"""The keys below a section that lead to a fault, as the file spells them, and what it is."""


def residency_faults(models: Mapping[str, Mapping[str, Any]]) -> Iterator[Found]:
    """Yield the faults of the models of a file, whose values may be anything that YAML can hold."""
    for name, model in models.items():
        keep_alive = spelling_of(model, "keep_alive")
        may_be_absent = value_of(model, "min_resident") == 0
        if keep_alive in model and model[keep_alive] is not None and not may_be_absent:
            text = "has no effect while min_resident is 1, the default; write `min_resident: 0` too"
            yield (name, keep_alive), text
        if may_be_absent and model.get("engine") == "vllm":
            yield (name, spelling_of(model, "min_resident")), _VLLM


def preloading_faults(pools: Mapping[str, Mapping[str, Any]]) -> Iterator[Found]:
    """Yield the faults of the pools of a file, whose values may be anything that YAML can hold."""
    known = preloading_policy_names()
    for name, pool in pools.items():
        policy = pool.get("preloading")
        if isinstance(policy, str) and policy not in known:
            text = f"no preloading policy {policy!r}; known: {', '.join(known)}"
            yield (name, "preloading"), text
        host = spelling_of(pool, "host_weights_bytes")
        if pool.get("device") == "cpu" and pool.get(host) not in (None, 0):
            yield (name, host), _NO_GPU


def check_engine_lets_go(name: str, settings: ModelSettings, directory: ModelDirectory) -> None:
    """Raise `ConfigurationError` where a model may be absent whose engine cannot be exchanged."""
    if settings.min_resident == 0 and runs_on_vllm(settings, directory):
        place = f"models.{name}.min_resident"
        raise ConfigurationError(f"{place}: {_VLLM}", param=place)
