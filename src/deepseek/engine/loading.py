"""From a `ModelSpec` to an engine."""

import logging
import os
import time
from pathlib import Path

import torch

from deepseek.core.errors import ConfigurationError, DeepseekError
from deepseek.core.requests import Task
from deepseek.core.wire import ModelInfo, ModelSpec, WorkerSpec
from deepseek.engine.base import Engine
from deepseek.engine.batch_scheduler import BatchScheduler
from deepseek.engine.engines.decoder import DecoderEngine
from deepseek.engine.engines.encoder import EncoderEngine
from deepseek.engine.grammar import GrammarCompiler
from deepseek.engine.kv_cache import DEFAULT_BLOCK_TOKENS, BlockPool
from deepseek.engine.kv_storage import KVStorage
from deepseek.engine.linear import linear_factory
from deepseek.engine.models.encoder import Encoder
from deepseek.engine.models.registry import load_decoder
from deepseek.engine.ops.registry import make_ops
from deepseek.engine.runner import CpuRunner
from deepseek.engine.speculation import Speculation
from deepseek.weights.model_directory import ModelDirectory, open_model_directory

logger = logging.getLogger(__name__)

MIN_CONTEXT_TOKENS = 16


def prepare_device(spec: WorkerSpec) -> str:
    """Choose and configure the device; returns its torch name.

    Raises `ConfigurationError` where the pool names a GPU that is not there.
    """
    device = spec.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        index = int(device.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            raise ConfigurationError(
                f"pools.{spec.pool}.device: {device!r} does not exist; this machine has "
                f"{torch.cuda.device_count()} GPU(s): use `cpu` or `auto`",
                param="device",
            )
        return device
    torch.set_num_threads(spec.num_threads or len(os.sched_getaffinity(0)))
    return "cpu"


def load_engine(model: ModelSpec, spec: WorkerSpec, *, device: str) -> tuple[Engine, ModelInfo]:
    """Load one model; raises errors of `core.errors` and `OSError`."""
    started = time.monotonic()
    directory = open_model_directory(Path(model.path))
    dtype = _dtype(model.dtype, directory, device)
    engine: Engine
    if model.task is Task.GENERATE:
        engine, width, vocab = _load_decoder(model, spec, directory, dtype=dtype, device=device)
    else:
        engine, width, vocab = _load_encoder(model, spec, directory, dtype=dtype, device=device)
    info = ModelInfo(
        name=model.name,
        max_model_len=engine.max_model_len,
        vocab_size=vocab,
        width=width,
        dtype=str(dtype).removeprefix("torch."),
        weights_bytes=sum(file.stat().st_size for file in directory.weight_files),
        load_s=time.monotonic() - started,
    )
    logger.info("model %s loaded in %.1f s (%s)", model.name, info.load_s, info.dtype)
    return engine, info


def failed_info(model: ModelSpec, error: DeepseekError | OSError) -> ModelInfo:
    """Return the report of a model that could not be loaded."""
    code = error.code if isinstance(error, DeepseekError) else "model_unavailable"
    return ModelInfo(
        name=model.name, max_model_len=0, vocab_size=0, error=str(error), error_code=code
    )


def _load_decoder(
    model: ModelSpec,
    spec: WorkerSpec,
    directory: ModelDirectory,
    *,
    dtype: torch.dtype,
    device: str,
) -> tuple[DecoderEngine, int, int]:
    decoder = load_decoder(
        directory.path,
        dtype=dtype,
        device=device,
        ops=make_ops(device),
        linear_factory=linear_factory(model.quantization),
    )
    shares = sum(m.share for m in spec.models if m.task is Task.GENERATE)
    budget = int(spec.kv_cache_bytes * model.share / shares)
    num_blocks = budget // (decoder.kv_shape.token_bytes * DEFAULT_BLOCK_TOKENS)
    capacity = num_blocks * DEFAULT_BLOCK_TOKENS
    max_len = min(decoder.max_positions, model.max_model_len or decoder.max_positions, capacity)
    if max_len < MIN_CONTEXT_TOKENS:
        raise ConfigurationError(
            f"pools.{spec.pool}.kv_cache_bytes: {budget} bytes hold {capacity} tokens of model "
            f"{model.name!r}, {decoder.kv_shape.token_bytes} bytes each; give it more"
        )
    storage = KVStorage(
        decoder.kv_shape, num_blocks=num_blocks, block_tokens=DEFAULT_BLOCK_TOKENS, device=device
    )
    grammars = GrammarCompiler(
        directory.path, vocab_size=decoder.vocab_size, eos_token_ids=directory.eos_token_ids
    )
    grammars.warm_up()
    engine = DecoderEngine(
        model.name,
        CpuRunner(decoder, storage, eos_token_ids=directory.eos_token_ids),
        BatchScheduler(
            BlockPool(num_blocks, block_tokens=DEFAULT_BLOCK_TOKENS),
            max_step_tokens=spec.max_step_tokens,
            max_running=spec.max_running,
        ),
        grammars=grammars,
        eos_token_ids=directory.eos_token_ids,
        vocab_size=decoder.vocab_size,
        max_model_len=max_len,
        speculation=Speculation() if model.speculation == "prompt-lookup" else None,
    )
    return engine, 0, decoder.vocab_size


def _load_encoder(
    model: ModelSpec,
    spec: WorkerSpec,
    directory: ModelDirectory,
    *,
    dtype: torch.dtype,
    device: str,
) -> tuple[EncoderEngine, int, int]:
    encoder = Encoder(directory, dtype=dtype, device=device)
    max_len = min(directory.max_model_len, model.max_model_len or directory.max_model_len)
    engine = EncoderEngine(
        model.name, encoder, max_len=max_len, max_step_tokens=spec.max_step_tokens
    )
    return engine, encoder.width, encoder.vocab_size


def _dtype(name: str, directory: ModelDirectory, device: str) -> torch.dtype:
    """Resolve `auto`: a checkpoint in half precision runs in bfloat16 where the device has it."""
    if name != "auto":
        dtype = getattr(torch, name)
        assert isinstance(dtype, torch.dtype)  # noqa: S101 - the settings allow known names only
        return dtype
    stored = directory.config.get("dtype") or directory.config.get("torch_dtype") or "float32"
    if stored == "float32":
        return torch.float32
    if device != "cpu":
        return torch.bfloat16
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32
