"""The composition root: from a deployment file to a running platform.

The life of a request, and the room of each step:

1. `gateway` reads the body, checks every field and finds the deployment by name.
2. `serving.deployments` renders the chat template, tokenises, checks lengths and takes a place in
   the deployment's bounded queue, or refuses with 429.
3. `serving.replica` sends the token ids over a Unix socket to the worker of the model's pool.
4. `engine.step_loop`, in the worker process, asks a policy of `scheduling` which of the pool's
   models steps next.
5. `engine.engines` runs the step: `schedule` a batch, `run` the model, `postprocess` the tokens.
6. One frame carries all new tokens of the step back; `serving` turns them into text, ends answers
   at stop strings, and `gateway` streams them out.
7. When the client goes away, closing the stream aborts the request in the worker at once; when the
   worker dies, `serving.replica` starts another and sends again what nobody has seen a token of.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deepseek.administration import LiveDeployment
from deepseek.core.errors import (
    AdapterRejected,
    ConfigurationError,
    DeepseekError,
    ModelSourceError,
)
from deepseek.core.load import LoadSnapshot
from deepseek.core.requests import Task
from deepseek.core.wire import AdapterSpec, ModelSpec, WorkerSpec
from deepseek.deployment_file import DeploymentFile
from deepseek.engine.settings import PoolSettings
from deepseek.gateway.server import Gateway, bind
from deepseek.serving.deployments import Deployment, Generator
from deepseek.serving.encoders import EncoderDeployment
from deepseek.serving.platform import Platform
from deepseek.serving.precision_faults import check_engine_switches
from deepseek.serving.qos_faults import check_engine_takes_qos
from deepseek.serving.replica import Observer, Replica, RestartPolicy, WorkerState
from deepseek.serving.residency_faults import check_engine_lets_go
from deepseek.serving.settings import ModelSettings
from deepseek.telemetry.metrics import Metrics
from deepseek.weights.acquisition import resolve_source
from deepseek.weights.adapter_directory import open_adapter_directory
from deepseek.weights.cache import ModelCache
from deepseek.weights.model_directory import ModelDirectory, open_model_directory
from deepseek.weights.progress import Progress


def run(
    file: DeploymentFile,
    *,
    base_dir: Path,
    progress: AbstractContextManager[Progress],
    announce: Callable[[str], None],
    log_level: str = "info",
    written: DeploymentFile | None = None,
) -> int:
    """Serve a deployment file until a signal ends it; returns the exit status.

    `written` is the file without what the command line put over it: what `deepseek apply` compares.

    The address is taken first and the models are fetched, converted and checked before any worker
    starts, so that a wrong file fails at once. Raises errors of `core.errors`.
    """
    with bind(file.gateway.host, file.gateway.port) as listener:
        written = written or file
        with progress as stages:
            file, directories = prepare(file, base_dir=base_dir, progress=stages)
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            return runner.run(
                _serve(
                    file,
                    directories,
                    listener,
                    written=written,
                    announce=announce,
                    log_level=log_level,
                )
            )


def prepare(
    file: DeploymentFile, *, base_dir: Path, progress: Progress
) -> tuple[DeploymentFile, dict[str, ModelDirectory]]:
    """Return the file with absolute paths and its models' directories, fetched if need be.

    Raises errors of `core.errors`.
    """
    file = find_interpreters(file, base_dir=base_dir)
    pools = file.pool_settings()
    directories = {
        name: find_model(
            name,
            settings,
            base_dir=base_dir,
            progress=progress,
            python=pools[settings.pool].python,
        )
        for name, settings in file.models.items()
    }
    return with_absolute_paths(file, base_dir=base_dir), directories


def find_interpreters(file: DeploymentFile, *, base_dir: Path) -> DeploymentFile:
    """Return the file with every `pools.NAME.python` as an absolute path.

    Raises `ConfigurationError` where one is not a program that can be run.
    """
    pools = {
        name: settings
        if settings.python is None
        else settings.model_copy(update={"python": _interpreter(name, settings.python, base_dir)})
        for name, settings in file.pools.items()
    }
    return file.model_copy(update={"pools": pools})


def find_model(
    name: str,
    settings: ModelSettings,
    *,
    base_dir: Path,
    progress: Progress,
    python: str | None = None,
) -> ModelDirectory:
    """Return a model's directory, fetched and converted if need be; errors name the model.

    `python` is the interpreter of the model's pool, where that is not the platform's own.
    """
    try:
        path = resolve_source(
            settings.source, base_dir=base_dir, cache=ModelCache.default(), progress=progress
        )
        has_vllm = python is not None or find_spec("vllm") is not None
        directory = open_model_directory(
            path,
            any_decoder=settings.engine == "vllm" or (settings.engine == "auto" and has_vllm),
        )
    except ConfigurationError as error:
        raise type(error)(f"models.{name}: {error.message}", param=f"models.{name}") from error
    _check_task(name, settings, directory)
    check_engine_takes_qos(name, settings, directory)
    check_engine_lets_go(name, settings, directory)
    check_engine_switches(name, settings, directory)
    _check_adapters(name, settings, directory, base_dir=base_dir)
    return directory


def _check_task(name: str, settings: ModelSettings, directory: ModelDirectory) -> None:
    declared = directory.task if settings.task == "auto" else Task(settings.task)
    if (declared is Task.GENERATE) != (directory.task is Task.GENERATE):
        raise ModelSourceError(
            f"models.{name}.task: {declared.value!r} is not what {directory.architecture} does; "
            f"leave it out or write {directory.task.value!r}"
        )
    if settings.engine == "vllm" and directory.task is not Task.GENERATE:
        raise ConfigurationError(
            f"models.{name}.engine: `vllm` runs language models only, and this one is there to "
            f"{directory.task.value}; write `torch` or leave it out"
        )


def _check_adapters(
    name: str, settings: ModelSettings, directory: ModelDirectory, *, base_dir: Path
) -> None:
    """Refuse adapters that cannot be read; whether they fit the weights, the worker finds."""
    place = f"models.{name}.adapters"
    if (settings.adapters or settings.adapter_dirs) and directory.task is not Task.GENERATE:
        raise ModelSourceError(
            f"{place}: a model of task {directory.task.value!r} takes no adapters", param=place
        )
    for adapter, path in settings.adapters.items():
        try:
            rank = open_adapter_directory(base_dir / path).max_rank
        except AdapterRejected as error:
            raise ModelSourceError(f"{place}.{adapter}: {error.message}", param=place) from error
        if rank > settings.max_adapter_rank:
            raise ModelSourceError(
                f"{place}.{adapter}: has rank {rank}; models.{name}.max_adapter_rank is "
                f"{settings.max_adapter_rank}: raise it",
                param=place,
            )
    for path in settings.adapter_dirs:
        if not (base_dir / path).is_dir():
            raise ModelSourceError(
                f"models.{name}.adapter_dirs: {base_dir / path} is not a directory", param=place
            )


def with_absolute_paths(file: DeploymentFile, *, base_dir: Path) -> DeploymentFile:
    """Return the file with the paths of adapters and records as a worker anywhere finds them."""

    def absolute(path: str) -> str:
        return str((base_dir / path).resolve())

    models = {
        name: settings.model_copy(
            update={
                "adapters": {key: absolute(path) for key, path in settings.adapters.items()},
                "adapter_dirs": [absolute(path) for path in settings.adapter_dirs],
                "key": _with_absolute_path(settings.key, absolute),
            }
        )
        for name, settings in file.models.items()
    }
    pools = {
        name: settings.model_copy(
            update={
                field: absolute(path)
                for field in ("step_record", "decision_record")
                if (path := getattr(settings, field)) is not None
            }
        )
        for name, settings in file.pools.items()
    }
    return file.model_copy(update={"models": models, "pools": pools})


def _with_absolute_path(
    key: dict[str, Any] | None, absolute: Callable[[str], str]
) -> dict[str, Any] | None:
    return {**key, "file": absolute(key["file"])} if key and "file" in key else key


def build_platform(
    file: DeploymentFile,
    directories: dict[str, ModelDirectory],
    *,
    observer: Observer | None = None,
    log_level: str = "info",
) -> Platform:
    """Return the deployments of a file and the replicas behind them, nothing started yet."""
    replicas = {
        pool: Replica(
            _worker_spec(pool, settings, file, directories, log_level=log_level),
            _restart_policy(settings),
            observer=observer,
            decisions_kept={
                name: model.decisions_kept
                for name, model in file.models.items()
                if model.pool == pool
            },
        )
        for pool, settings in file.pool_settings().items()
    }
    deployments: list[Deployment] = []
    for name, settings in file.models.items():
        directory = directories[name]
        cls = Generator if directory.task is Task.GENERATE else EncoderDeployment
        deployments.append(cls(name, settings, directory, replicas[settings.pool]))
    return Platform(deployments, list(replicas.values()))


@asynccontextmanager
async def started_platform(
    file: DeploymentFile, directories: dict[str, ModelDirectory], *, log_level: str = "info"
) -> AsyncIterator[Platform]:
    """Run a file's workers, without an HTTP edge, for the length of the block.

    Raises errors of `core.errors` where one cannot be started.
    """
    platform = build_platform(file, directories, log_level=log_level)
    try:
        await _started(asyncio.create_task(platform.start()))
        yield platform
    finally:
        await platform.stop(drain_timeout_s=0)


async def _serve(
    file: DeploymentFile,
    directories: dict[str, ModelDirectory],
    listener: socket.socket,
    *,
    written: DeploymentFile,
    announce: Callable[[str], None],
    log_level: str,
) -> int:
    metrics = Metrics()

    def observe(pool: str, seen: WorkerState | LoadSnapshot) -> None:
        if isinstance(seen, LoadSnapshot):
            metrics.observe_snapshot(pool, seen)
            return
        metrics.worker_up(pool, seen is WorkerState.READY)
        if seen is WorkerState.RESTARTING:
            metrics.worker_restarted(pool)

    platform = build_platform(file, directories, observer=observe, log_level=log_level)
    gateway = Gateway(
        platform,
        file.gateway,
        metrics=metrics,
        administration=LiveDeployment(written, platform),
    )
    host, port = listener.getsockname()[:2]
    serving = asyncio.create_task(gateway.serve(listener, on_drain=platform.begin_drain))
    starting = asyncio.create_task(platform.start())
    try:
        await asyncio.wait({serving, starting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await _started(starting)
            announce(f"serving {', '.join(file.models)} on http://{host}:{port}")
            await serving
    finally:
        starting.cancel()
        gateway.stop()
        await asyncio.gather(starting, serving, return_exceptions=True)
        await platform.stop(drain_timeout_s=0)
    return 0


async def _started(starting: "asyncio.Task[None]") -> None:
    """Raise the first error of the workers' start as itself."""
    try:
        await starting
    except* DeepseekError as errors:
        raise errors.exceptions[0] from None


def _worker_spec(
    pool: str,
    settings: PoolSettings,
    file: DeploymentFile,
    directories: dict[str, ModelDirectory],
    *,
    log_level: str,
) -> WorkerSpec:
    models = [
        ModelSpec(
            name=name,
            path=str(directories[name].path),
            task=directories[name].task if model.task == "auto" else Task(model.task),
            dtype=model.dtype,
            max_model_len=model.max_model_len,
            qos=model.to_qos(),
            quantization=model.quantization,
            speculation=model.speculation,
            engine=model.engine,
            adapters=[AdapterSpec(name=n, path=path) for n, path in model.adapters.items()],
            max_adapters=model.max_adapters,
            max_adapter_rank=model.max_adapter_rank,
            keep_alive_s=model.keep_alive,
            min_resident=model.min_resident,
            verify=model.verify,
            key=model.to_key(),
        )
        for name, model in file.models.items()
        if model.pool == pool
    ]
    return WorkerSpec(
        pool=pool,
        socket_path="",
        device=settings.device,
        models=models,
        cpus=settings.cpus,
        num_threads=settings.num_threads,
        kv_cache_bytes=settings.kv_cache_bytes,
        memory_utilization=settings.memory_utilization,
        weights_bytes=settings.weights_bytes,
        prepared_dir=str(ModelCache.default().prepared.root),
        prepared_bytes=settings.prepared_bytes,
        host_weights_bytes=settings.host_weights_bytes,
        preloading=settings.preloading,
        preload_bytes_per_s=settings.preload_bytes_per_s,
        max_step_tokens=settings.max_step_tokens,
        max_running=settings.max_running,
        step_policy=settings.step_policy,
        max_step_s=settings.max_step_time,
        step_record=settings.step_record,
        decision_record=settings.decision_record,
        decision_record_bytes=settings.decision_record_bytes,
        snapshot_interval_s=settings.snapshot_interval_s,
        log_level=log_level,
        python=settings.python,
    )


def _interpreter(pool: str, python: str, base_dir: Path) -> str:
    # Not resolved: a virtual environment's interpreter is known by the path of its link.
    path = base_dir.absolute() / Path(python).expanduser()
    if not path.is_file() or not os.access(path, os.X_OK):
        raise ConfigurationError(
            f"pools.{pool}.python: {path} is not a program that can be run; give the path of a "
            "Python interpreter (in a virtual environment: bin/python)"
        )
    return str(path)


def _restart_policy(settings: PoolSettings) -> RestartPolicy:
    return RestartPolicy(
        start_timeout_s=settings.start_timeout_s,
        max_restarts=settings.max_restarts,
        backoff_s=settings.restart_backoff_s,
        stands_by=settings.standby_worker,
    )


def _new_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's event loop where it is installed, else asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415 - optional: it does not exist on every platform
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
