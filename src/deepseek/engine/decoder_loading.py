"""Puts a decoder engine together: weights, memory for attention state, runner, scheduler."""

from contextlib import ExitStack

import torch

from deepseek.core.errors import ConfigurationError
from deepseek.core.wire import ModelSpec, WorkerSpec
from deepseek.engine.adapters import AdapterSet
from deepseek.engine.base import at_once
from deepseek.engine.batch_scheduler import BatchScheduler
from deepseek.engine.cuda_runner import CudaRunner
from deepseek.engine.device import StepLimits, kv_bytes, step_limits
from deepseek.engine.engines.decoder import DecoderEngine
from deepseek.engine.grammar import GrammarCompiler
from deepseek.engine.kv_budget import profile_kv_bytes
from deepseek.engine.kv_cache import DEFAULT_BLOCK_TOKENS, BlockPool
from deepseek.engine.kv_storage import KVStorage
from deepseek.engine.linear import LinearFactory, head_factory, linear_factory
from deepseek.engine.load_pace import LoadPace
from deepseek.engine.models.base import Decoder
from deepseek.engine.models.mtp import MTPDrafter
from deepseek.engine.models.preparation import Preparation
from deepseek.engine.models.registry import load_decoder, load_drafter
from deepseek.engine.mtp_runner import MTPRunner
from deepseek.engine.mtp_speculation import MTPSpeculation
from deepseek.engine.nested_linear import PRECISIONS
from deepseek.engine.ops.registry import make_ops
from deepseek.engine.parked_weights import ParkedWeights
from deepseek.engine.prompt_lookup import PromptLookup
from deepseek.engine.runner import CpuRunner, Runner
from deepseek.engine.speculation import Speculation
from deepseek.engine.weight_reading import reading_of
from deepseek.engine.weights_memory import weights_bytes
from deepseek.weights.model_directory import ModelDirectory

MIN_CONTEXT_TOKENS = 16


def load_decoder_engine(
    model: ModelSpec,
    spec: WorkerSpec,
    directory: ModelDirectory,
    *,
    dtype: torch.dtype,
    device: str,
    preparation: Preparation,
    pace: LoadPace | None = None,
) -> tuple[DecoderEngine, int, int]:
    """Return the engine, the vocabulary's size, and the bytes that its weights take.

    Raises errors of `core.errors`, and `LoadCancelled` where `pace` is given: that of a load beside
    others' steps, in another thread than theirs.
    """
    with ExitStack() as undo:
        loaded = _load(
            model,
            spec,
            directory,
            dtype=dtype,
            device=device,
            preparation=preparation,
            pace=pace,
            undo=undo,
        )
        undo.pop_all()
    return loaded


def _load(
    model: ModelSpec,
    spec: WorkerSpec,
    directory: ModelDirectory,
    *,
    dtype: torch.dtype,
    device: str,
    preparation: Preparation,
    pace: LoadPace | None,
    undo: ExitStack,
) -> tuple[DecoderEngine, int, int]:
    """`undo` gives back what is not freed with its tensors, where the load ends halfway."""
    if model.speculation == "mtp" and device != "cpu":
        raise ConfigurationError(
            f"models.{model.name}.speculation: `mtp` runs on CPU pools only, not on {device!r}; "
            "leave it out, or use `prompt-lookup`",
            param="speculation",
        )
    limits = step_limits(spec, device)
    make_linear = linear_factory(model.quantization, device=device)
    make_head = head_factory(model.quantization, device=device)
    if pace is not None:
        make_linear, make_head = pace.applied_to(make_linear), pace.applied_to(make_head)
    decoder = load_decoder(
        directory.path,
        dtype=dtype,
        device=device,
        ops=make_ops(device),
        linear_factory=make_linear,
        head_factory=make_head,
        preparation=preparation,
        reading=reading_of(model, directory),
    )
    can_park = device != "cpu" and spec.host_weights_bytes > 0
    weights = _parkable(decoder, device=device, pace=pace, undo=undo) if can_park else None
    head = None
    if model.speculation == "mtp":
        head = _load_head(
            model,
            directory,
            target=decoder,
            dtype=dtype,
            make_linear=make_linear,
            preparation=preparation,
        )
    kv_shape = decoder.kv_shape if head is None else head.joint_kv_shape
    adapters = AdapterSet(
        decoder.projections,
        dtype=dtype,
        device=device,
        max_adapters=model.max_adapters,
        max_rank=model.max_adapter_rank,
    )
    budget = _kv_bytes(model, spec, decoder, device=device, limits=limits)
    num_blocks = budget // (kv_shape.token_bytes * DEFAULT_BLOCK_TOKENS)
    capacity = num_blocks * DEFAULT_BLOCK_TOKENS
    max_len = min(decoder.max_positions, model.max_model_len or decoder.max_positions, capacity)
    if max_len < MIN_CONTEXT_TOKENS:
        raise ConfigurationError(
            f"pools.{spec.pool}.kv_cache_bytes: {budget} bytes hold {capacity} tokens of model "
            f"{model.name!r}, {kv_shape.token_bytes} bytes each; give it more"
        )
    storage = KVStorage(
        kv_shape,
        num_blocks=num_blocks,
        block_tokens=DEFAULT_BLOCK_TOKENS,
        device=device,
        is_releasable=can_park,
    )
    undo.callback(storage.close)
    eos_token_ids = directory.eos_token_ids
    speculation: Speculation | None = None
    if model.speculation == "prompt-lookup":
        speculation = PromptLookup()
    runner: Runner
    if head is not None:
        speculation = MTPSpeculation()
        runner = MTPRunner(head, storage, speculation=speculation, eos_token_ids=eos_token_ids)
    elif device == "cpu":
        runner = CpuRunner(decoder, storage, eos_token_ids=eos_token_ids)
    else:
        runner = CudaRunner(
            decoder,
            storage,
            eos_token_ids=eos_token_ids,
            max_running=limits.max_running,
            max_model_len=max_len,
            adapters=adapters,
            # Ahead only where nobody else steps: else one model's step would run in the time that
            # another is charged.
            is_asynchronous=len(spec.models) == 1,
            weights=weights,
        )
        if pace is None:
            runner.capture()  # else each graph when a step first needs it, in the steps' thread
    engine = DecoderEngine(
        model.name,
        runner,
        BatchScheduler(
            BlockPool(num_blocks),
            max_step_tokens=limits.max_step_tokens,
            max_running=limits.max_running,
            lookahead=0 if head is None else 1,
        ),
        grammars=GrammarCompiler(
            directory.path, vocab_size=decoder.vocab_size, eos_token_ids=eos_token_ids
        ),
        eos_token_ids=eos_token_ids,
        vocab_size=decoder.vocab_size,
        max_model_len=max_len,
        adapters=adapters,
        speculation=speculation,
        precisions=PRECISIONS if model.quantization == "nested" else (),
    )
    return engine, decoder.vocab_size, weights_bytes(decoder, head)


def _parkable(
    decoder: Decoder, *, device: str, pace: LoadPace | None, undo: ExitStack
) -> ParkedWeights:
    before_piece = at_once if pace is None else pace.advance
    weights = ParkedWeights(decoder, device=torch.device(device), before_piece=before_piece)
    undo.callback(weights.close)
    return weights


def _kv_bytes(
    model: ModelSpec, spec: WorkerSpec, decoder: Decoder, *, device: str, limits: StepLimits
) -> int:
    """Return the memory for the model's attention state: as set, or measured."""
    configured = kv_bytes(model, spec, device)
    if configured is not None:
        return configured
    if len(spec.models) > 1:
        raise ConfigurationError(
            f"pools.{spec.pool}.kv_cache_bytes: several models share this GPU, so what is left for "
            "attention state cannot be found by running one of them; set it"
        )
    return profile_kv_bytes(
        decoder,
        device=device,
        max_step_tokens=limits.max_step_tokens,
        max_running=limits.max_running,
        block_tokens=DEFAULT_BLOCK_TOKENS,
        memory_utilization=spec.memory_utilization,
    )


def _load_head(
    model: ModelSpec,
    directory: ModelDirectory,
    *,
    target: Decoder,
    dtype: torch.dtype,
    make_linear: LinearFactory,
    preparation: Preparation,
) -> MTPDrafter:
    head = load_drafter(
        directory.path,
        target=target,
        dtype=dtype,
        device="cpu",
        ops=make_ops("cpu"),
        linear_factory=make_linear,
        preparation=preparation,
        reading=reading_of(model, directory),
    )
    if head is None:
        raise ConfigurationError(
            f"models.{model.name}.speculation: `mtp` needs the multi-token prediction head of "
            f"DeepSeek-V3, which the weights in {directory.path} do not have; leave it out, or use "
            "`prompt-lookup`",
            param="speculation",
        )
    return head
