"""What `deepseek simulate` is asked for: the model, its load and step times, and the policies."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

import msgspec

from deepseek.cli.arguments import duration, positive_int
from deepseek.cli.load.traces import read_trace, scale_trace
from deepseek.core.errors import ConfigurationError
from deepseek.core.qos import LateRequests, QoS
from deepseek.deployment_file import load_deployment_file
from deepseek.engine.settings import PoolSettings
from deepseek.scheduling.batching.base import StepLimits
from deepseek.scheduling.batching.registry import check_batching_policy
from deepseek.scheduling.simulation.requests import Arrival
from deepseek.scheduling.simulation.simulator import (
    DEFAULT_KV_TOKENS,
    DEFAULT_LIMITS,
    ModelSetup,
)
from deepseek.scheduling.simulation.step_times import (
    SMALL_CHAT_ON_ONE_CORE,
    StepTimes,
    fit_step_times,
    read_step_record,
)

_PROMISED = QoS(ttft_s=1.0, itl_s=0.1)
"""Where no file and no option says otherwise."""
_DEFAULT_POLICIES = ("slack", "greedy")
_ENCODER_STEP_TOKENS = 512
_MODEL = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Declared:
    """What the deployment file says of the model."""

    name: str = _MODEL
    qos: QoS = _PROMISED
    pool: PoolSettings = field(default_factory=PoolSettings)
    is_encoder: bool = False


def model_setup(arguments: argparse.Namespace, times: StepTimes) -> ModelSetup:
    """Return the model: options first, then the deployment file, then defaults."""
    declared = _declared(arguments)
    is_encoder = arguments.encoder or declared.is_encoder
    step_tokens = _ENCODER_STEP_TOKENS if is_encoder else DEFAULT_LIMITS.max_tokens
    return ModelSetup(
        name=declared.name,
        qos=_qos(arguments, declared.qos),
        arrivals=_arrivals(arguments, is_encoder=is_encoder),
        times=times,
        limits=StepLimits(
            max_tokens=arguments.max_step_tokens or declared.pool.max_step_tokens or step_tokens,
            max_sequences=arguments.max_running
            or declared.pool.max_running
            or DEFAULT_LIMITS.max_sequences,
        ),
        kv_tokens=arguments.kv_tokens or DEFAULT_KV_TOKENS,
        is_encoder=is_encoder,
    )


def compared_policies(texts: Sequence[str] | None, qos: QoS) -> list[tuple[str, QoS]]:
    """Return each policy's name as given, and its settings: `qos` where the name says no more."""
    names = texts or dict.fromkeys((qos.policy, *_DEFAULT_POLICIES))
    return [(text, _named(text, qos)) for text in names]


def step_times(arguments: argparse.Namespace) -> tuple[StepTimes, float | None]:
    """Return the step times, and the error of the fit where there was one."""
    if arguments.step_times is not None:
        return _fitted_before(Path(arguments.step_times)), None
    if arguments.step_record is None:
        return SMALL_CHAT_ON_ONE_CORE, None
    path = Path(arguments.step_record)
    try:
        with path.open("rb") as lines:
            fit = fit_step_times(read_step_record(lines, model=arguments.model))
    except OSError as error:
        raise ConfigurationError(f"--step-record: {path}: {error.strerror}") from None
    return fit.times, fit.mape


def _fitted_before(path: Path) -> StepTimes:
    try:
        times = msgspec.json.decode(path.read_bytes(), type=StepTimes)
    except OSError as error:
        raise ConfigurationError(f"--step-times: {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ConfigurationError(
            f"--step-times: {path}: {error}; give the `step_times` of what --json printed"
        ) from None
    if min(astuple(times)) < 0:
        raise ConfigurationError(f"--step-times: {path}: no step takes less than no time")
    return times


def _declared(arguments: argparse.Namespace) -> _Declared:
    if arguments.file is None:
        return _Declared(name=arguments.model or _MODEL)
    file = load_deployment_file(Path(arguments.file))
    name = arguments.model
    if name is None and len(file.models) == 1:
        (name,) = file.models
    if name not in file.models:
        found = "several models" if name is None else f"no model {name!r}"
        raise ConfigurationError(
            f"--model: {arguments.file} has {found}; name one of: {', '.join(file.models)}",
            param="model",
        )
    settings = file.models[name]
    return _Declared(
        name=name,
        qos=settings.to_qos(),
        pool=file.pool_settings()[settings.pool],
        is_encoder=settings.task in ("embed", "classify"),
    )


def _qos(arguments: argparse.Namespace, declared: QoS) -> QoS:
    """Return the promises: those of options, else the file's, else the default ones."""
    given = {"ttft_s": arguments.ttft, "itl_s": arguments.itl, "max_wait_s": arguments.max_wait}
    known = {name: value for name, value in given.items() if value is not None}
    late = declared.late if arguments.late is None else LateRequests(arguments.late)
    unpromised = {
        name: getattr(_PROMISED, name)
        for name in ("ttft_s", "itl_s")
        if math.isinf(getattr(declared, name))
    }
    return replace(declared, late=late, **{**unpromised, **known})


def _named(text: str, qos: QoS) -> QoS:
    name, _, rest = text.partition(":")
    check_batching_policy(name)
    batch, _, wait = rest.partition(":")
    named = replace(qos, policy=name)
    try:
        if batch:
            size = positive_int(batch)
            named = replace(named, min_batch_size=size, max_batch_size=size)
        if wait:
            named = replace(named, max_wait_s=duration(wait))
    except argparse.ArgumentTypeError as error:
        raise ConfigurationError(f"--policy {text}: {error}", param="policy") from None
    return named


def _arrivals(arguments: argparse.Namespace, *, is_encoder: bool) -> list[Arrival]:
    rows = scale_trace(
        read_trace(Path(arguments.trace), max_rows=arguments.max_requests),
        max_input_tokens=arguments.max_input_tokens,
        max_output_tokens=arguments.max_output_tokens,
    )
    if len(rows) < 2:
        raise ConfigurationError("--trace: one request is no load; give more", param="trace")
    return [
        Arrival(
            at_s=row.arrival_s,
            prompt_tokens=row.input_tokens,
            output_tokens=1 if is_encoder else row.output_tokens,
        )
        for row in rows
    ]
