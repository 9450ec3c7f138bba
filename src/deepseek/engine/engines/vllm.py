"""vLLM behind our `Engine` protocol: its engine core, in this process, stepped by our step loop.

Its scheduler batches and its kernels compute; which model steps next, and what each step is
charged, stays with the worker, so shares hold between vLLM's models and ours. Written against vLLM
0.32, whose in-process interface is no promise of its makers: what goes beyond
`LLMEngine.add_request`, `step` and `abort_request` is kept in `_Core`.

Imported by `deepseek.engine.selection` only, which sets the environment that vLLM reads.
"""

import json
import logging
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import vllm
from llguidance.gbnf_to_lark import any_to_lark
from vllm import EngineArgs, LLMEngine, RequestOutput
from vllm.exceptions import VLLMValidationError
from vllm.inputs import tokens_input
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.sampling_params import SamplingParams as VllmSamplingParams
from vllm.v1.executor import Executor

from deepseek.core.errors import (
    ConfigurationError,
    InvalidGrammar,
    InvalidRequest,
    UnsupportedModel,
    UnsupportedParameter,
)
from deepseek.core.load import ModelLoad
from deepseek.core.qos import QoS
from deepseek.core.requests import (
    EncodeRequest,
    FinishReason,
    GenerateRequest,
    SamplingParams,
    TokenLogprobs,
)
from deepseek.core.wire import Failed, ModelInfo, ModelSpec, TokenDelta, WorkerSpec
from deepseek.engine.base import Output, Request, StepReport
from deepseek.engine.device import kv_bytes, step_limits
from deepseek.engine.request_checks import check_generation
from deepseek.scheduling.batching.base import Demand, StepLimits, StepPlan, StepShape
from deepseek.weights.model_directory import ModelDirectory

logger = logging.getLogger(__name__)

_SMALLEST_TOP_P = 1e-9
"""vLLM refuses 0, which means the most probable token alone; so does this, in float32."""
_SEEDS = 2**63
_FRAME = ("1 validation error", "For further information")
_MAX_REASON = 300
"""Characters of vLLM's reasons that are passed on; some are pages with advice on its own flags."""
_FINISHED = (FinishReason.STOP, FinishReason.LENGTH)


def load_vllm_engine(
    model: ModelSpec, spec: WorkerSpec, directory: ModelDirectory, *, device: str
) -> tuple["VllmEngine", ModelInfo]:
    """Load one model.

    Raises `UnsupportedModel` where vLLM does not know it, `ConfigurationError` where it does not
    fit, with vLLM's own reason.
    """
    started = time.monotonic()
    if directory.manifest is not None:
        raise UnsupportedModel(
            f"{directory.path}: vLLM reads safetensors, and these weights are in a chunk store; "
            "register the model without --chunks, or write `engine: torch`"
        )
    _check_build(spec, device)
    try:
        config = _engine_args(model, spec, directory, device=device).create_engine_config()
    except Exception as error:
        raise UnsupportedModel(
            f"{directory.path}: vLLM {vllm.__version__} does not take architecture "
            f"{directory.architecture!r}: {_reason(error)}"
        ) from error
    config.device_config.device = torch.device(device)
    try:
        llm = LLMEngine(config, Executor.get_class(config), log_stats=False)
        engine = VllmEngine(model.name, llm, eos_token_ids=directory.eos_token_ids)
        _try_out(engine)
    except Exception as error:
        logger.exception("vLLM could not start model %s", model.name)
        raise ConfigurationError(
            f"models.{model.name}: vLLM {vllm.__version__} could not start it on {device} with "
            f"{kv_bytes(model, spec, device)} bytes of pools.{spec.pool}.kv_cache_bytes: "
            f"{_reason(error)}"
        ) from error
    info = ModelInfo(
        name=model.name,
        max_model_len=engine.max_model_len,
        vocab_size=engine.vocab_size,
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        weights_bytes=directory.weights_bytes,
        load_s=time.monotonic() - started,
    )
    logger.info("model %s loaded in %.1f s (%s)", model.name, info.load_s, info.dtype)
    return engine, info


@dataclass(slots=True)
class _Open:
    """A request that vLLM holds; a `QueuedRequest` to batching policies."""

    request: GenerateRequest
    core_id: str
    """The id under which vLLM's scheduler knows it."""
    arrived_s: float
    due_s: float
    itl_s: float
    first_token_s: float | None = None
    num_output: int = 0
    has_begun: bool = False
    has_reported: bool = False
    """True once a delta has told how much of the prompt was cached."""

    @property
    def id(self) -> int:
        return self.request.id

    @property
    def num_pending(self) -> int:
        return 1 if self.num_output else len(self.request.prompt_token_ids)

    @property
    def num_computed(self) -> int:
        return len(self.request.prompt_token_ids) + self.num_output if self.num_output else 0

    def was_answered(self, num_tokens: int, *, now_s: float) -> None:
        """Note that tokens came, and when the next one is due."""
        if self.first_token_s is None:
            self.first_token_s = now_s
        self.num_output += num_tokens
        self.due_s = self.first_token_s + self.num_output * self.itl_s


class VllmEngine:
    """Steps one vLLM engine; see `deepseek.engine.base.Engine` for the promises."""

    def __init__(self, name: str, llm: LLMEngine, *, eos_token_ids: tuple[int, ...]) -> None:
        self.name = name
        self.max_model_len: int = llm.model_config.max_model_len
        self.vocab_size: int = llm.model_config.get_vocab_size()
        self._llm = llm
        self._core = _Core(llm)
        self._eos_token_ids = eos_token_ids
        self._open: dict[str, _Open] = {}
        self._prefix_hit_tokens = 0
        self._qos = QoS()
        self.limits = StepLimits(
            max_tokens=llm.vllm_config.scheduler_config.max_num_batched_tokens,
            max_sequences=llm.vllm_config.scheduler_config.max_num_seqs,
        )
        self.last_step: StepReport | None = None

    @property
    def has_work(self) -> bool:
        return bool(self._open)

    def expect(self, qos: QoS) -> None:
        """Give requests added from now on these deadlines."""
        self._qos = qos

    def demand(self, now_s: float) -> Demand:
        """Show what vLLM holds; it batches by itself, so its steps always start at once."""
        waiting = [opened for opened in self._open.values() if not opened.has_begun]
        running = [opened for opened in self._open.values() if opened.has_begun]
        return Demand(now_s=now_s, waiting=waiting, running=running, is_in_flight=True)

    def add(self, request: Request, *, now_s: float | None = None) -> None:
        """Check a generation and give it to vLLM's scheduler."""
        if isinstance(request, EncodeRequest):
            raise InvalidRequest(f"model {self.name!r} generates; it does not encode")
        if request.adapter is not None:
            raise UnsupportedParameter(
                f"model {self.name!r} runs on vLLM, which takes no adapters here; use a model on "
                "the torch engine",
                param="adapter",
            )
        check_generation(request, max_model_len=self.max_model_len, vocab_size=self.vocab_size)
        key = str(request.id)
        try:
            core_id = self._llm.add_request(
                key,
                tokens_input(request.prompt_token_ids),
                vllm_sampling(request.sampling, eos_token_ids=self._eos_token_ids),
            )
        except (VLLMValidationError, ValueError) as error:
            kind = InvalidRequest if request.sampling.grammar is None else InvalidGrammar
            param = getattr(error, "parameter", None)
            raise kind(f"vLLM refuses it: {_reason(error)}", param=param) from error
        arrived_s = time.monotonic() if now_s is None else now_s
        self._open[key] = _Open(
            request, core_id, arrived_s, arrived_s + self._qos.ttft_s, self._qos.itl_s
        )

    def step(self, plan: StepPlan | None = None) -> list[Output]:
        """Run one step of vLLM's scheduler and model, which have limits of their own."""
        self.last_step = None
        answers = self._llm.step()
        self.last_step = self._report()
        return [out for answer in answers for out in self._translate(answer)]

    def settle(self) -> None:
        """Do nothing: a step of vLLM waits for its tokens."""

    def abort(self, request_id: int) -> None:
        """Drop a request; its blocks are free at once, its computed prefix stays reusable."""
        if self._open.pop(str(request_id), None) is not None:
            self._llm.abort_request([str(request_id)])

    def fail_running(self) -> list[int]:
        """Drop the last step's requests and everything that its blocks claim to hold."""
        failed = [
            opened.request.id
            for opened in self._open.values()
            if opened.core_id in self._core.last_step
        ]
        for request_id in failed:
            self.abort(request_id)
        # The scheduler has counted the step's tokens as computed, and shares their blocks.
        self._llm.reset_prefix_cache(reset_running_requests=True)
        return failed

    def load(self) -> ModelLoad:
        """Count requests and KV tokens as vLLM's scheduler does."""
        num_running = self._core.num_running
        used, cached, capacity = self._core.kv_tokens()
        return ModelLoad(
            model=self.name,
            num_waiting=len(self._open) - num_running,
            num_running=num_running,
            kv_tokens_used=used,
            kv_tokens_cached=cached,
            kv_tokens_capacity=capacity,
            num_preemptions=self._core.num_preemptions,
            prefix_hit_tokens=self._prefix_hit_tokens,
        )

    def close(self) -> None:
        """Forget all requests, weights and attention state."""
        for opened in list(self._open.values()):
            self.abort(opened.request.id)
        self._core.close()
        del self._llm, self._core

    def _report(self) -> StepReport | None:
        """Describe the batch that vLLM scheduled last."""
        scheduled = self._core.last_step
        if not scheduled:
            return None
        now_s = time.monotonic()
        num_decoding = num_context = 0
        waits: list[float] = []
        for opened in self._open.values():
            if opened.core_id not in scheduled:
                continue
            num_context += opened.num_computed
            num_decoding += opened.num_output > 0
            if not opened.has_begun:
                opened.has_begun = True
                waits.append(now_s - opened.arrived_s)
        shape = StepShape(
            num_prefill_tokens=sum(scheduled.values()) - num_decoding,
            num_decoding=num_decoding,
            num_context_tokens=num_context,
            num_sequences=len(scheduled),
        )
        return StepReport(shape=shape, waits_s=tuple(waits))

    def _translate(self, answer: RequestOutput) -> Iterator[Output]:
        opened = self._open.get(answer.request_id)
        if opened is None:
            return
        (completion,) = answer.outputs
        reason = completion.finish_reason
        if answer.finished:
            del self._open[answer.request_id]
        request_id = opened.request.id
        if reason is not None and reason not in _FINISHED:
            yield _failure(opened.request, reason)
            return
        if not completion.token_ids and reason is None:
            return
        cached = 0 if opened.has_reported else answer.num_cached_tokens or 0
        opened.has_reported = True
        self._prefix_hit_tokens += cached
        opened.was_answered(len(completion.token_ids), now_s=time.monotonic())
        logprobs = None
        if opened.request.sampling.num_logprobs is not None:
            logprobs = _logprobs(completion, num_top=opened.request.sampling.num_logprobs)
        yield TokenDelta(request_id, list(completion.token_ids), reason, cached, logprobs)


class _Core:
    """What only the inside of vLLM's engine knows."""

    def __init__(self, llm: LLMEngine) -> None:
        self._client = llm.engine_core
        self._core = self._client.engine_core
        self._scheduler = self._core.scheduler
        self._cache = llm.vllm_config.cache_config
        self.last_step: dict[str, int] = {}
        """The batch that was scheduled last: tokens by id of the request."""
        self.num_preemptions = 0
        self._watch_schedules()

    @property
    def num_running(self) -> int:
        return len(self._scheduler.running)

    def kv_tokens(self) -> tuple[int, int, int]:
        """Return the tokens in use, those kept for reuse only, and those there is room for.

        The second is a lower bound: full blocks in use are counted as kept.
        """
        capacity = self._cache.kv_cache_size_tokens
        if not capacity:  # a model without attention
            return 0, 0, 0
        pool = self._scheduler.kv_cache_manager.block_pool
        used = round(pool.get_usage() * capacity)
        hashed = len(pool.cached_block_hash_to_block) * capacity // pool.num_gpu_blocks
        return used, max(0, hashed - used), capacity

    def close(self) -> None:
        """Give memory back. Not vLLM's own shutdown: that ends what its other models here share."""
        self._client._finalizer.detach()
        self._core.structured_output_manager.clear_backend()
        self._core.model_executor.shutdown()
        self._scheduler.shutdown()

    def _watch_schedules(self) -> None:
        """Look at each schedule on its way to the model: preemptions are told nowhere else."""
        schedule = self._scheduler.schedule

        def watched(*args: Any, **options: Any) -> Any:
            scheduled = schedule(*args, **options)
            self.last_step = dict(scheduled.num_scheduled_tokens)
            self.num_preemptions += len(scheduled.preempted_req_ids or ())
            return scheduled

        self._scheduler.schedule = watched


def vllm_sampling(params: SamplingParams, *, eos_token_ids: tuple[int, ...]) -> VllmSamplingParams:
    """Return vLLM's parameters for ours.

    End-of-sequence ids are given as stop ids: vLLM would read them from one config file only, we
    know both. A grammar ends with vLLM's own end-of-sequence token, which it must then obey.

    Raises `InvalidGrammar` or `UnsupportedParameter` for a grammar.
    """
    stop = params.stop_token_ids if params.ignore_eos else (*eos_token_ids, *params.stop_token_ids)
    return VllmSamplingParams(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=max(params.top_p, _SMALLEST_TOP_P),
        top_k=params.top_k,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        logit_bias=dict(params.logit_bias) or None,
        seed=None if params.seed is None else params.seed % _SEEDS,
        stop_token_ids=list(stop),
        ignore_eos=params.grammar is None,
        min_tokens=params.min_tokens,
        logprobs=params.num_logprobs,
        structured_outputs=None if params.grammar is None else _structure(params.grammar),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        skip_clone=True,
    )


def _structure(grammar: str) -> StructuredOutputsParams:
    """Return an llguidance grammar in the form in which vLLM hands it to llguidance unchanged."""
    if not grammar.lstrip().startswith("{"):
        return _lark(grammar)
    try:
        parts = json.loads(grammar)["grammars"]
        (part,) = parts
        schema, text = part.get("json_schema"), part.get("lark_grammar")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidGrammar(
            f"the grammar cannot be followed: not one llguidance grammar ({error})"
        ) from error
    if schema is not None:
        return StructuredOutputsParams(json=json.dumps(schema))
    if text is not None:
        return _lark(text)
    raise InvalidGrammar("the grammar cannot be followed: it has neither a schema nor Lark rules")


def _lark(text: str) -> StructuredOutputsParams:
    if any_to_lark(text) != text:
        raise UnsupportedParameter(
            "vLLM would take this Lark grammar for GBNF; use a JSON schema, or a model on the "
            "torch engine",
            param="response_format",
        )
    return StructuredOutputsParams(grammar=text)


def _failure(request: GenerateRequest, reason: str) -> Failed:
    if request.sampling.grammar is not None:
        message = "vLLM could not follow the grammar; the worker's log says why"
        return Failed(request.id, InvalidGrammar.code, message)
    return Failed(request.id, "engine_fault", f"vLLM ended the request: {reason}")


def _logprobs(completion: Any, *, num_top: int) -> list[TokenLogprobs]:
    found: list[TokenLogprobs] = []
    for token, scores in zip(completion.token_ids, completion.logprobs, strict=True):
        ranked = sorted(scores.items(), key=lambda item: item[1].rank)
        top = [(token_id, score.logprob) for token_id, score in ranked[:num_top]]
        found.append(TokenLogprobs(chosen=scores[token].logprob, top=top))
    return found


def _engine_args(
    model: ModelSpec, spec: WorkerSpec, directory: ModelDirectory, *, device: str
) -> EngineArgs:
    configured, limits = kv_bytes(model, spec, device), step_limits(spec, device)
    return EngineArgs(
        model=str(directory.path),
        served_model_name=model.name,
        dtype=_dtype(model.dtype, directory, device),
        max_model_len=model.max_model_len or -1,  # -1: as long as the memory below has room for
        kv_cache_memory_bytes=configured,
        # Only checked against what is free, once the line above is there: others live here too.
        gpu_memory_utilization=spec.memory_utilization if configured is None else 0.01,
        max_num_batched_tokens=limits.max_step_tokens,
        max_num_seqs=min(limits.max_running, limits.max_step_tokens),
        max_logprobs=-1,  # the gateway has the limit
        # Ahead of time only where nobody else steps: else one model's step would run in the time
        # that another is charged.
        async_scheduling=None if len(spec.models) == 1 else False,
        structured_outputs_config={"backend": "guidance"},  # the gateway's grammars are llguidance
        seed=secrets.randbits(31),  # else requests without one draw the same after every start
        use_tqdm_on_load=False,
        disable_log_stats=True,
    )


def _dtype(name: str, directory: ModelDirectory, device: str) -> str:
    """Resolve `auto` as the torch engine does: vLLM would run float32 checkpoints in bfloat16."""
    if name != "auto":
        return name
    stored = directory.config.get("dtype") or directory.config.get("torch_dtype") or "float32"
    if stored == "float32":
        return "float32"
    return "bfloat16" if device == "cpu" else "auto"


def _check_build(spec: WorkerSpec, device: str) -> None:
    """Refuse a vLLM that was built for another kind of device than the pool's."""
    built_for, wanted = current_platform.device_type, device.partition(":")[0]
    if built_for != wanted:
        raise ConfigurationError(
            f"pools.{spec.pool}: the device is {device!r}, but this vLLM runs on "
            f"{built_for or 'no device'!r}: install the build for {wanted} (docs/vllm.md)"
        )


def _try_out(engine: VllmEngine) -> None:
    """Generate two tokens: kernels that a model's shape lacks are missed at the first step only."""
    engine.add(
        GenerateRequest(
            id=0,
            model=engine.name,
            prompt_token_ids=[0],
            sampling=SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True),
        )
    )
    while engine.has_work:
        engine.step()


def _reason(error: Exception) -> str:
    """Return vLLM's own words: the first of them, without pydantic's frame around them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = " ".join(line for line in lines if not line.startswith(_FRAME)).strip()
    told = told.removeprefix("Value error, ").partition(" [type=")[0]
    if len(told) > _MAX_REASON:
        told = told[:_MAX_REASON] + "..."
    return told or type(error).__name__
