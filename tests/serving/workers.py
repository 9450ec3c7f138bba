"""Real workers on tiny models."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from deepseek.core.requests import SamplingParams, Task
from deepseek.core.wire import AdapterSpec, ModelSpec, WorkerSpec
from deepseek.serving.adapted import AdaptedGenerator
from deepseek.serving.base import GenerateOptions
from deepseek.serving.deployments import Deployment, Generator
from deepseek.serving.encoders import EncoderDeployment
from deepseek.serving.platform import Platform
from deepseek.serving.replica import Replica, RestartPolicy
from deepseek.serving.settings import ModelSettings
from deepseek.weights.model_directory import open_model_directory


@asynccontextmanager
async def running_platform(
    models: dict[str, Path],
    *,
    settings: dict[str, ModelSettings] | None = None,
    policy: RestartPolicy | None = None,
    weights_bytes: int | None = None,
    preload_bytes_per_s: int = 0,
    device: str = "cpu",
    host_weights_bytes: int = 0,
) -> AsyncIterator[Platform]:
    """Start one worker with these models and stop it afterwards."""
    directories = {name: open_model_directory(path) for name, path in models.items()}
    given = {name: (settings or {}).get(name) or ModelSettings(source=name) for name in models}
    specs = [
        ModelSpec(
            name=name,
            path=str(directory.path),
            task=directory.task,
            dtype="float32",
            adapters=[AdapterSpec(name=n, path=path) for n, path in given[name].adapters.items()],
            max_adapters=given[name].max_adapters,
            qos=given[name].to_qos(),
            quantization=given[name].quantization,
            keep_alive_s=given[name].keep_alive,
            min_resident=given[name].min_resident,
            verify=given[name].verify,
            key=given[name].to_key(),
        )
        for name, directory in directories.items()
    ]
    spec = WorkerSpec(
        pool="default",
        socket_path="",
        device=device,
        models=specs,
        num_threads=1,
        kv_cache_bytes=64 << 20,
        snapshot_interval_s=0.05,
        weights_bytes=weights_bytes,
        host_weights_bytes=host_weights_bytes,
        preload_bytes_per_s=preload_bytes_per_s,
    )
    replica = Replica(spec, policy or RestartPolicy())
    deployments: list[Deployment] = []
    for name, directory in directories.items():
        cls = Generator if directory.task is Task.GENERATE else EncoderDeployment
        deployments.append(cls(name, given[name], directory, replica))
    platform = Platform(deployments, [replica])
    await platform.start()
    try:
        yield platform
    finally:
        await platform.stop(drain_timeout_s=0)


def greedy_options(max_tokens: int, *, n: int = 1, stop: tuple[str, ...] = ()) -> GenerateOptions:
    """Greedy answers of exactly `max_tokens`."""
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return GenerateOptions(sampling=sampling, n=n, stop=stop)


async def collect(
    generator: Generator | AdaptedGenerator, prompt: list[int], options: GenerateOptions
) -> tuple[list[int], str, str | None]:
    """Return one answer's token ids, text and finish reason."""
    tokens: list[int] = []
    text, reason = "", None
    async for delta in generator.generate([prompt], options):
        tokens.extend(delta.token_ids)
        text += delta.text
        reason = delta.finish_reason
    return tokens, text, reason
