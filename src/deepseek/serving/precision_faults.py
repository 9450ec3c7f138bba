"""What is wrong with the settings of quantisation and precision beside other settings."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from deepseek.core.errors import ConfigurationError
from deepseek.core.precision import finer
from deepseek.core.requests import Task
from deepseek.core.spellings import spelling_of, value_of
from deepseek.scheduling.precision.policy import PrecisionRule
from deepseek.serving.precision_settings import PrecisionRuleSettings, PrecisionSettings
from deepseek.serving.qos_faults import runs_on_vllm
from deepseek.serving.settings import ModelSettings
from deepseek.weights.model_directory import ModelDirectory

_ENCODERS = (
    "`nested` is for language models, whose requests choose; write `int8` for a model that encodes"
)
_VLLM = "vLLM does not compute in `nested` weights; leave it out, or write `engine: torch`"

Raw = Mapping[str, Any]
Found = tuple[tuple[str | int, ...], str]
"""The keys below `models` that lead to a fault, as the file spells them, and what it is."""


def precision_faults(models: Mapping[str, Raw], pools: Mapping[str, Raw]) -> Iterator[Found]:
    """Yield the faults of the models of a file, whose values may be anything that YAML can hold.

    A `precision` that is wrong by itself is passed over; that is told elsewhere.
    """
    for name, model in models.items():
        is_nested = model.get("quantization") == "nested"
        if is_nested:
            for text in _nested_faults(model, pools):
                yield (name, "quantization"), text
        precision = model.get("precision")
        if precision is None:
            continue
        if not is_nested:
            text = "there is no choice of it without weights for it; write `quantization: nested`"
            yield (name, "precision"), text
        for place, text in _policy_faults(precision):
            yield (name, "precision", *place), text


def check_engine_switches(name: str, settings: ModelSettings, directory: ModelDirectory) -> None:
    """Raise `ConfigurationError` where a model's engine has no layers of several precisions."""
    if settings.quantization != "nested":
        return
    place = f"models.{name}.quantization"
    if directory.task is not Task.GENERATE:
        raise ConfigurationError(f"{place}: {_ENCODERS}", param=place)
    if runs_on_vllm(settings, directory):
        raise ConfigurationError(f"{place}: {_VLLM}", param=place)


def _nested_faults(model: Raw, pools: Mapping[str, Raw]) -> Iterator[str]:
    pool = model.get("pool", ModelSettings.model_fields["pool"].default)
    device = pools[pool].get("device") if isinstance(pool, str) and pool in pools else None
    if isinstance(device, str) and device.startswith("cuda"):
        yield f"`nested` runs on CPUs, and pool {pool!r} has device {device!r}; use another pool"
    if model.get("engine") == "vllm":
        yield _VLLM
    if model.get("task") in ("embed", "classify"):
        yield _ENCODERS


def _policy_faults(given: Any) -> Iterator[Found]:
    try:
        settings = PrecisionSettings.model_validate(given, strict=True)
    except ValidationError:
        return
    policy = settings.to_policy()
    if finer(policy.default, policy.minimum) is not policy.default:
        text = f"{settings.default} is less than minimum ({settings.minimum}); raise it"
        yield (spelling_of(given, "default"),), text
    for index, (rule, written) in enumerate(zip(policy.rules, settings.rules, strict=True)):
        for field, text in _rule_faults(written):
            key = spelling_of(value_of(given, "rules")[index], field)
            yield ("rules", index, key), text
        if finer(rule.use, policy.minimum) is not rule.use:
            text = f"{written.use} is less than minimum ({settings.minimum}); raise it"
            yield ("rules", index, "use"), text
    unreachable = _first_after_catch_all(policy.rules)
    if unreachable is not None:
        text = f"is never looked at: rule {unreachable - 1} fits every request; put it last"
        yield ("rules", unreachable), text
    if settings.shedding is not None and settings.minimum == "int8":
        text = "has no effect while minimum is int8; write `minimum: int4`, or leave this out"
        yield ("shedding",), text


def _rule_faults(rule: PrecisionRuleSettings) -> Iterator[tuple[str, str]]:
    for what in ("prompt", "answer"):
        least = getattr(rule, f"min_{what}_tokens")
        most = getattr(rule, f"max_{what}_tokens")
        if most is not None and least > most:
            yield (
                f"min_{what}_tokens",
                f"{least} is more than max_{what}_tokens ({most}); lower it",
            )


def _first_after_catch_all(rules: Sequence[PrecisionRule]) -> int | None:
    """Return the first rule that comes after one without any bound."""
    for index, rule in enumerate(rules[:-1]):
        if PrecisionRule(use=rule.use, is_kept=rule.is_kept) == rule:
            return index + 1
    return None
