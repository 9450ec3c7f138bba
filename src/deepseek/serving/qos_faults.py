"""What is wrong with the QoS of models beside one another, where no single setting shows it."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from deepseek.core.errors import ConfigurationError
from deepseek.core.qos import QoS
from deepseek.core.requests import Task
from deepseek.core.spellings import spelling_of, value_of
from deepseek.scheduling.batching.registry import batching_policy_names
from deepseek.scheduling.sharing.fair_share import device_parts
from deepseek.serving.settings import ModelSettings, QosSettings
from deepseek.weights.model_directory import DECODER_ARCHITECTURES, ModelDirectory

_LEFT_TO_VLLM = ("policy", "min_batch_size", "max_batch_size", "max_wait_time", "strict")
"""Settings of batches, which vLLM makes by itself."""

Raw = Mapping[str, Any]
Found = tuple[tuple[str, ...], str]
"""The keys below `models` that lead to a fault, as the file spells them, and what it is."""


def qos_faults(models: Mapping[str, Raw], pools: Mapping[str, Raw]) -> list[Found]:
    """Return the faults of the models of a file, whose values may be anything that YAML can hold.

    A model with a value that is wrong by itself is passed over; that value is told elsewhere.
    """
    valid = {name: qos for name, raw in models.items() if (qos := _qos(raw)) is not None}
    policies = batching_policy_names()
    found: list[Found] = []
    for name, qos in valid.items():
        pool = pools.get(str(_pool(models[name])), {})
        given = value_of(models[name], "qos")
        faults = [
            *_policy_faults(qos, policies),
            *_batch_faults(qos, models[name], pool),
            *_share_faults(qos, pool),
        ]
        if models[name].get("engine") == "vllm":
            faults += _vllm_faults(qos)
        found += [((name, "qos", spelling_of(given, field)), text) for field, text in faults]
    for pool_name in dict.fromkeys(_pool(models[name]) for name in valid):
        sharing = {name: valid[name] for name in valid if _pool(models[name]) == pool_name}
        overbooked = _overbooked({n: _as_policies_see(q, models[n]) for n, q in sharing.items()})
        if overbooked is not None:
            last = [name for name, qos in sharing.items() if qos.reserved_share > 0][-1]
            given = value_of(models[last], "qos")
            found.append(((last, "qos", spelling_of(given, "reserved_share")), overbooked))
    return found


def check_engine_takes_qos(name: str, settings: ModelSettings, directory: ModelDirectory) -> None:
    """Raise `ConfigurationError` for settings that the engine of a model would not heed."""
    if not runs_on_vllm(settings, directory):
        return
    for field, text in _vllm_faults(settings.qos):
        place = f"models.{name}.qos.{field}"
        raise ConfigurationError(f"{place}: {directory.architecture}: {text}", param=place)


def runs_on_vllm(settings: ModelSettings, directory: ModelDirectory) -> bool:
    """Say whether vLLM runs a model: `auto` is where ours does not know the architecture."""
    is_ours = directory.task is not Task.GENERATE or directory.architecture in DECODER_ARCHITECTURES
    return settings.engine == "vllm" or (settings.engine == "auto" and not is_ours)


def _policy_faults(qos: QosSettings, known: Sequence[str]) -> Iterator[tuple[str, str]]:
    if qos.policy not in known:
        close = difflib.get_close_matches(qos.policy, known, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        yield "policy", f"no batching policy {qos.policy!r}; {remedy}"


def _vllm_faults(qos: QosSettings) -> Iterator[tuple[str, str]]:
    default = QosSettings()
    for field in _LEFT_TO_VLLM:
        if getattr(qos, field) != getattr(default, field):
            yield (
                field,
                "vLLM makes its batches by itself; leave this out of a model that runs on it",
            )


def _batch_faults(qos: QosSettings, model: Raw, pool: Raw) -> Iterator[tuple[str, str]]:
    if qos.max_batch_size is not None and qos.min_batch_size > qos.max_batch_size:
        yield (
            "min_batch_size",
            f"{qos.min_batch_size} is more than max_batch_size ({qos.max_batch_size}); lower it",
        )
    if qos.strict and qos.max_wait_time == 0:
        yield "strict", "waits for min_batch_size, and max_wait_time is 0; set it (e.g. 200ms)"
    limit = value_of(pool, "max_running")
    if model.get("task") in ("embed", "classify"):
        return  # it bounds generations
    for field in ("min_batch_size", "max_batch_size"):
        size = getattr(qos, field)
        if isinstance(limit, int) and size is not None and size > limit:
            yield field, f"{size} is more than the pool's max_running ({limit}); raise that"


def _share_faults(qos: QosSettings, pool: Raw) -> Iterator[tuple[str, str]]:
    policy = value_of(pool, "step_policy")
    if qos.reserved_share > 0 and policy == "round-robin":
        yield (
            "reserved_share",
            "the pool's step_policy `round-robin` keeps no reservations; write `fair-share`",
        )


def _overbooked(models: Mapping[str, QoS]) -> str | None:
    try:
        device_parts(models)
    except ConfigurationError as error:
        return error.message.removeprefix("qos.reserved_share: ")
    return None


def _qos(model: Raw) -> QosSettings | None:
    given = model.get("qos", {})
    try:
        return QosSettings.model_validate(given, strict=True)
    except ValidationError:
        return None


def _as_policies_see(qos: QosSettings, model: Raw) -> QoS:
    given = model.get("share")
    share = given if isinstance(given, int | float) and 0 < given <= 1000 else 1.0
    return ModelSettings(source="-", share=share, qos=qos).to_qos()


def _pool(model: Raw) -> Any:
    pool = model.get("pool", ModelSettings.model_fields["pool"].default)
    return pool if isinstance(pool, str) else None
