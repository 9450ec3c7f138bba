"""From a `ModelSpec` to a torch engine."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from deepseek.core.requests import Task
from deepseek.core.wire import ModelInfo, ModelSpec, WorkerSpec
from deepseek.engine.adapters import load_listed
from deepseek.engine.base import AdapterHost, Engine
from deepseek.engine.decoder_loading import load_decoder_engine
from deepseek.engine.device import step_limits
from deepseek.engine.engines.decoder import DecoderEngine
from deepseek.engine.engines.encoder import EncoderEngine
from deepseek.engine.linear import linear_factory
from deepseek.engine.load_pace import LoadPace
from deepseek.engine.models.encoder import Encoder, load_encoder
from deepseek.engine.models.preparation import Preparation, ReadAnew
from deepseek.engine.ops.registry import make_ops
from deepseek.engine.preparing import PreparedWeights
from deepseek.engine.weight_reading import reading_of
from deepseek.engine.weights_memory import weights_bytes
from deepseek.weights.model_directory import ModelDirectory, open_model_directory

logger = logging.getLogger(__name__)


def load_engine(
    model: ModelSpec,
    spec: WorkerSpec,
    *,
    device: str,
    directory: ModelDirectory | None = None,
    pace: LoadPace | None = None,
) -> tuple[Engine, ModelInfo]:
    """Load one model; raises errors of `core.errors`, `OSError` and `LoadCancelled`.

    `directory`: the model's, where it has been opened already. `pace`: of a load beside others'
    steps, in another thread than theirs.
    """
    started = time.monotonic()
    directory = directory or open_model_directory(Path(model.path))
    dtype = _dtype(model.dtype, directory, device)

    def build(preparation: Preparation) -> _Built:
        return _build(
            model, spec, directory, dtype=dtype, device=device, preparation=preparation, pace=pace
        )

    prepared = PreparedWeights.of(model, spec, directory, dtype=dtype, device=device)
    built, writing = (
        (build(ReadAnew()), None) if prepared is None else prepared.load(build, pace=pace)
    )
    engine = built.engine
    info = ModelInfo(
        name=model.name,
        max_model_len=engine.max_model_len,
        vocab_size=built.vocab_size,
        width=built.width,
        dtype=str(dtype).removeprefix("torch."),
        weights_bytes=built.weights_bytes,
        load_s=time.monotonic() - started,
        adapters=load_listed(engine, model.adapters) if isinstance(engine, AdapterHost) else [],
    )
    logger.info("model %s loaded in %.2f s (%s)", model.name, info.load_s, info.dtype)
    if writing is not None:
        engine.writing = writing
        writing.begin()
    return engine, info


@dataclass(frozen=True, slots=True, kw_only=True)
class _Built:
    """An engine, and what is told of its model."""

    engine: DecoderEngine | EncoderEngine
    vocab_size: int
    weights_bytes: int
    width: int = 0


def _build(
    model: ModelSpec,
    spec: WorkerSpec,
    directory: ModelDirectory,
    *,
    dtype: torch.dtype,
    device: str,
    preparation: Preparation,
    pace: LoadPace | None,
) -> _Built:
    engine: DecoderEngine | EncoderEngine
    if model.task is Task.GENERATE:
        engine, vocab_size, num_bytes = load_decoder_engine(
            model, spec, directory, dtype=dtype, device=device, preparation=preparation, pace=pace
        )
        return _Built(engine=engine, vocab_size=vocab_size, weights_bytes=num_bytes)
    engine, encoder = _load_encoder(
        model, spec, directory, dtype=dtype, device=device, preparation=preparation, pace=pace
    )
    return _Built(
        engine=engine,
        vocab_size=encoder.vocab_size,
        weights_bytes=weights_bytes(encoder),
        width=encoder.width,
    )


def _load_encoder(
    model: ModelSpec,
    spec: WorkerSpec,
    directory: ModelDirectory,
    *,
    dtype: torch.dtype,
    device: str,
    preparation: Preparation,
    pace: LoadPace | None,
) -> tuple[EncoderEngine, Encoder]:
    make_linear = linear_factory(model.quantization, device=device)
    encoder = load_encoder(
        directory,
        dtype=dtype,
        device=device,
        ops=make_ops(device),
        linear_factory=make_linear if pace is None else pace.applied_to(make_linear),
        preparation=preparation,
        reading=reading_of(model, directory),
    )
    max_len = min(directory.max_model_len, model.max_model_len or directory.max_model_len)
    engine = EncoderEngine(
        model.name,
        encoder,
        max_len=max_len,
        max_step_tokens=step_limits(spec, device).max_encode_tokens,
    )
    return engine, encoder


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
