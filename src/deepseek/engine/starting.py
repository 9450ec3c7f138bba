"""From a worker's spec to its models: loads those that are to be there at the start."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from deepseek.core.errors import ConfigurationError, DeepseekError
from deepseek.core.wire import Event, ModelInfo, ModelSpec, WorkerSpec
from deepseek.engine.absent_engine import AbsentEngine
from deepseek.engine.base import Engine
from deepseek.engine.decision_record import DecisionRecord
from deepseek.engine.device import beside_steps, free_bytes, kv_bytes
from deepseek.engine.hosted_model import HostedModel
from deepseek.engine.load_pace import LoadPace
from deepseek.engine.model_loader import ModelLoader
from deepseek.engine.outlook import TierSizes
from deepseek.engine.place import Place
from deepseek.engine.residency import Residents
from deepseek.engine.selection import absent_info, failed_info, load_model
from deepseek.engine.step_loop import Inbox
from deepseek.scheduling.batching.base import BatchingPolicy
from deepseek.scheduling.batching.guarded import GuardedPolicy
from deepseek.scheduling.batching.registry import (
    PolicyMaker,
    check_batching_policy,
    policy_named_by,
)
from deepseek.scheduling.decision_log import RecordedPolicy
from deepseek.scheduling.preloading.registry import make_preloading_policy
from deepseek.telemetry.meters import ModelMeter
from deepseek.weights.model_directory import open_model_directory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedModels:
    """What the step loop begins with."""

    hosted: list[HostedModel] = field(default_factory=list)
    infos: list[ModelInfo] = field(default_factory=list)
    """What the platform is told of every model, those that could not be loaded among them."""
    places: list[Place] = field(default_factory=list)

    @property
    def weights_bytes(self) -> int:
        """What the weights of those that are there take."""
        return sum(info.weights_bytes for info in self.infos)

    def add(self, spec: ModelSpec, model: HostedModel, info: ModelInfo, *, num_bytes: int) -> None:
        """Take in a model that is there, or may be loaded."""
        self.hosted.append(model)
        self.infos.append(info)
        self.places.append(
            Place(spec=spec, model=model, state=info.residency, num_bytes=num_bytes, info=info)
        )


def start_models(spec: WorkerSpec, *, device: str) -> StartedModels:
    """Load the models; one that cannot be loaded is reported and the others serve."""
    make_policy = _policy_maker(spec)
    started = StartedModels()
    for model in spec.models:
        try:
            if model.min_resident > 0:
                _start_loaded(started, model, spec, device=device, make_policy=make_policy)
            else:
                _start_absent(started, model, make_policy)
        except (DeepseekError, OSError) as error:
            logger.error("model %s cannot be loaded: %s", model.name, error)
            started.infos.append(failed_info(model, error))
    return started


def make_residents(
    started: StartedModels,
    spec: WorkerSpec,
    *,
    device: str,
    commands: Inbox,
    send: Callable[[Event], None],
) -> Residents | None:
    """Return what lets the models come and go; None where all are to stay.

    Raises `ConfigurationError` for a preloading policy that does not exist, or a host tier beside
    no GPU.
    """
    if device == "cpu" and spec.host_weights_bytes:
        raise ConfigurationError(
            f"pools.{spec.pool}.host_weights_bytes: this pool runs on the CPU, whose memory is the "
            "host's; leave it out, or name a GPU as `device`",
            param="host_weights_bytes",
        )
    policy = make_preloading_policy(spec.preloading)
    if all(place.spec.min_resident > 0 for place in started.places):
        return None

    def load(
        model: ModelSpec, pace: LoadPace, *, keeps_host_copy: bool
    ) -> tuple[Engine, ModelInfo]:
        return load_model(
            model, spec if keeps_host_copy else _without_host(spec), device=device, pace=pace
        )

    def has_way_to_host(model: ModelSpec, num_bytes: int) -> bool:
        needed = num_bytes + (kv_bytes(model, spec, device) or 0)
        return needed <= free_bytes(device, utilization=spec.memory_utilization)

    return Residents(
        started.places,
        policy,
        loader=ModelLoader(load, put=commands.put, beside_steps=partial(beside_steps, device)),
        put=commands.put,
        send=send,
        sizes=TierSizes(
            device_bytes=spec.weights_bytes,
            host_bytes=spec.host_weights_bytes,
            has_way_to_host=has_way_to_host,
        ),
        preload_bytes_per_s=spec.preload_bytes_per_s,
    )


def _start_loaded(
    started: StartedModels,
    model: ModelSpec,
    spec: WorkerSpec,
    *,
    device: str,
    make_policy: PolicyMaker,
) -> None:
    engine, info = load_model(model, _without_host(spec), device=device)  # it never leaves
    left = None if spec.weights_bytes is None else spec.weights_bytes - started.weights_bytes
    if left is not None and info.weights_bytes > left:
        engine.close()
        raise ConfigurationError(
            f"pools.{spec.pool}.weights_bytes: the weights of model {model.name!r} take "
            f"{info.weights_bytes} bytes, and {left} are left; raise it, or let the model be "
            "absent (models.NAME.min_resident: 0)"
        )
    policy = make_policy(model.qos, model.name, engine.limits)
    hosted = _hosted(model, engine, policy, make_policy=make_policy)
    hosted.warm_up()  # nobody waits yet
    started.add(model, hosted, info, num_bytes=info.weights_bytes)


def _without_host(spec: WorkerSpec) -> WorkerSpec:
    """Return the spec by which an engine keeps no copy of its weights in the host's memory."""
    return msgspec.structs.replace(spec, host_weights_bytes=0)


def _start_absent(started: StartedModels, model: ModelSpec, make_policy: PolicyMaker) -> None:
    check_batching_policy(model.qos.policy)
    directory = open_model_directory(Path(model.path), any_decoder=model.engine != "torch")
    hosted = _hosted(model, AbsentEngine(model.name), None, make_policy=make_policy)
    started.add(model, hosted, absent_info(model), num_bytes=directory.weights_bytes)


def _hosted(
    model: ModelSpec, engine: Engine, policy: BatchingPolicy | None, *, make_policy: PolicyMaker
) -> HostedModel:
    return HostedModel(
        engine,
        policy,
        ModelMeter(time.monotonic()),
        qos=model.qos,
        make_policy=make_policy,
        adapters={adapter.name: adapter.path for adapter in model.adapters},
    )


def _policy_maker(spec: WorkerSpec) -> PolicyMaker:
    """Return what makes the worker's policies: guarded ones, of which some keep a record."""
    make: PolicyMaker = policy_named_by
    if spec.decision_record is not None:
        record = DecisionRecord(Path(spec.decision_record), max_bytes=spec.decision_record_bytes)
        make = partial(RecordedPolicy, write=record.add)
    return partial(GuardedPolicy, make=make)
