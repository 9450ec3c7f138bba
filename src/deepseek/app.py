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
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from deepseek.core.errors import ConfigurationError, DeepseekError, ModelSourceError
from deepseek.core.requests import LoadSnapshot, Task
from deepseek.core.wire import ModelSpec, WorkerSpec
from deepseek.deployment_file import DeploymentFile
from deepseek.engine.settings import PoolSettings
from deepseek.gateway.server import Gateway, bind
from deepseek.serving.deployments import Deployment, Generator
from deepseek.serving.encoders import EncoderDeployment
from deepseek.serving.platform import Platform
from deepseek.serving.replica import Observer, Replica, RestartPolicy, WorkerState
from deepseek.serving.settings import ModelSettings
from deepseek.telemetry.metrics import Metrics
from deepseek.weights.acquisition import resolve_source
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
) -> int:
    """Serve a deployment file until a signal ends it; returns the exit status.

    The address is taken first and the models are fetched, converted and checked before any worker
    starts, so that a wrong file fails at once. Raises errors of `core.errors`.
    """
    with bind(file.gateway.host, file.gateway.port) as listener:
        with progress as stages:
            directories = {
                name: find_model(name, settings, base_dir=base_dir, progress=stages)
                for name, settings in file.models.items()
            }
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            return runner.run(
                _serve(file, directories, listener, announce=announce, log_level=log_level)
            )


def find_model(
    name: str, settings: ModelSettings, *, base_dir: Path, progress: Progress
) -> ModelDirectory:
    """Return a model's directory, fetched and converted if need be; errors name the model."""
    try:
        path = resolve_source(
            settings.source, base_dir=base_dir, cache=ModelCache.default(), progress=progress
        )
        directory = open_model_directory(path)
    except ConfigurationError as error:
        raise type(error)(f"models.{name}: {error.message}", param=f"models.{name}") from error
    declared = directory.task if settings.task == "auto" else Task(settings.task)
    if (declared is Task.GENERATE) != (directory.task is Task.GENERATE):
        raise ModelSourceError(
            f"models.{name}.task: {declared.value!r} is not what {directory.architecture} does; "
            f"leave it out or write {directory.task.value!r}"
        )
    return directory


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
        )
        for pool, settings in file.pool_settings().items()
    }
    deployments: list[Deployment] = []
    for name, settings in file.models.items():
        directory = directories[name]
        cls = Generator if directory.task is Task.GENERATE else EncoderDeployment
        deployments.append(cls(name, settings, directory, replicas[settings.pool]))
    return Platform(deployments, list(replicas.values()))


async def _serve(
    file: DeploymentFile,
    directories: dict[str, ModelDirectory],
    listener: socket.socket,
    *,
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
    gateway = Gateway(platform, file.gateway, metrics=metrics)
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
            share=model.share,
            quantization=model.quantization,
            speculation=model.speculation,
        )
        for name, model in file.models.items()
        if model.pool == pool
    ]
    return WorkerSpec(
        pool=pool,
        socket_path="",
        device=settings.device,
        models=models,
        num_threads=settings.num_threads,
        kv_cache_bytes=settings.kv_cache_bytes,
        max_step_tokens=settings.max_step_tokens,
        max_running=settings.max_running,
        step_policy=settings.step_policy,
        snapshot_interval_s=settings.snapshot_interval_s,
        log_level=log_level,
    )


def _restart_policy(settings: PoolSettings) -> RestartPolicy:
    return RestartPolicy(
        start_timeout_s=settings.start_timeout_s,
        max_restarts=settings.max_restarts,
        backoff_s=settings.restart_backoff_s,
    )


def _new_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's event loop where it is installed, else asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415 - optional: it does not exist on every platform
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
