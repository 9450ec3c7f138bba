"""Deployments: models under their names, text in and text out.

A deployment owns the tokenizer, the chat template and the queue limit; the replica behind it owns
the worker. Several deployments of one pool share one replica.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from llguidance import LLMatcher

from deepseek.core.errors import (
    AdapterLoadingOff,
    AdapterNotFound,
    AdapterRejected,
    ContextLengthExceeded,
    DeepseekError,
    Draining,
    InvalidGrammar,
    InvalidRequest,
    ModelSourceError,
    ModelUnavailable,
    Overloaded,
    RequestTimeout,
    UnsupportedParameter,
)
from deepseek.core.precision import Precision
from deepseek.core.requests import GenerateRequest, SamplingParams, Task, TokenLogprobs
from deepseek.core.wire import AdapterSpec, ModelInfo, TokenDelta
from deepseek.scheduling.precision.policy import PrecisionChoice, RequestKind
from deepseek.serving.adapters import ServedAdapter, find_below
from deepseek.serving.base import (
    DeploymentStatus,
    GenerateOptions,
    PositionLogprobs,
    SamplingDefaults,
    TextDelta,
    TokenText,
)
from deepseek.serving.chat_template import load_chat_template
from deepseek.serving.kept_decisions import KeptDecision
from deepseek.serving.precision import ServedPrecision
from deepseek.serving.replica import Replica
from deepseek.serving.settings import LIVE_SETTINGS, ModelSettings
from deepseek.serving.stop_strings import StopStrings
from deepseek.serving.text_codec import TextCodec
from deepseek.weights.model_directory import ModelDirectory

OVERLOAD_RETRY_AFTER_S = 2.0


class Deployment:
    """What generators and encoders have in common: a name, a replica, a bounded queue."""

    task: Task

    def __init__(
        self, name: str, settings: ModelSettings, directory: ModelDirectory, replica: Replica
    ) -> None:
        self.name = name
        self.settings = settings
        self.directory = directory
        self.codec = TextCodec(directory.path)
        self._replica = replica
        self._created = int(time.time())
        self._num_in_flight = 0
        self.draining = False

    @property
    def max_model_len(self) -> int:
        """Tokens the model takes; what the worker found when it loaded it, until then what was set
        or the config says.
        """
        info = self._replica.model(self.name)
        if info is not None and info.max_model_len:
            return info.max_model_len
        own = self.directory.max_model_len
        return min(own, self.settings.max_model_len or own)

    @property
    def status(self) -> DeploymentStatus:
        """Describe the deployment for `/health/ready` and `/v1/models`."""
        reason = ""
        try:
            self._check()
        except DeepseekError as error:
            reason = error.message
        return DeploymentStatus(
            name=self.name,
            task=self.task,
            ready=not reason,
            reason=reason,
            created=self._created,
            max_model_len=self.max_model_len,
            num_in_flight=self._num_in_flight,
            residency=self._replica.residency(self.name),
        )

    def reconfigure(self, settings: ModelSettings) -> None:
        """Take the live settings of these; the worker has been told its part."""
        live = {field: getattr(settings, field) for field in LIVE_SETTINGS}
        self.settings = self.settings.model_copy(update=live)

    @property
    def decisions(self) -> Sequence[KeptDecision]:
        """The last decisions about the model, oldest first."""
        return self._replica.decisions.of(self.name)

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text, with the model's special tokens around it."""
        return self.codec.encode(text)

    def _check(self) -> ModelInfo:
        if self.draining:
            raise Draining("the platform is shutting down", retry_after_s=OVERLOAD_RETRY_AFTER_S)
        return self._replica.check(self.name)

    @contextmanager
    def _admitted(self, count: int) -> Iterator[None]:
        """Hold `count` places of the queue; refuse at once when there are none."""
        limit = self.settings.max_queue
        if count > limit:
            raise InvalidRequest(
                f"one request asks for {count} sequences; model {self.name!r} holds at most "
                f"{limit} (models.max_queue): split it"
            )
        if self._num_in_flight + count > limit:
            raise Overloaded(
                f"model {self.name!r} holds {self._num_in_flight} requests, its limit is {limit}",
                retry_after_s=OVERLOAD_RETRY_AFTER_S,
            )
        self._num_in_flight += count
        try:
            yield
        finally:
            self._num_in_flight -= count

    def _timed_out(self) -> RequestTimeout:
        limit_s = self.settings.request_timeout_s
        return RequestTimeout(f"the request took longer than request_timeout_s={limit_s:g}")


class Generator(Deployment):
    """A served language model; implements `deepseek.serving.base.GenerateDeployment`."""

    task = Task.GENERATE

    def __init__(
        self, name: str, settings: ModelSettings, directory: ModelDirectory, replica: Replica
    ) -> None:
        super().__init__(name, settings, directory, replica)
        self.deployment_name = name
        self._template = load_chat_template(directory.path)
        self.default_max_tokens = settings.default_max_tokens
        self.sampling_defaults = _sampling_defaults(directory)
        self._precision = ServedPrecision(name, settings)
        replica.watch(name, self._precision.adjust)

    @property
    def chat_template_source(self) -> str:
        """The chat template's text, empty where the model has none."""
        return "" if self._template is None else self._template.source

    def render_chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        template_kwargs: dict[str, Any] | None = None,
    ) -> list[int]:
        """Return the token ids of a conversation."""
        if self._template is None:
            raise UnsupportedParameter(
                f"model {self.name!r} has no chat template; use /v1/completions", param="messages"
            )
        text = self._template.render(messages, tools=tools, template_kwargs=template_kwargs)
        return self.codec.encode(text, add_special_tokens=False)

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        return self.codec.decode(token_ids)

    def check_grammar(self, grammar: str, *, param: str) -> None:
        """Refuse a grammar that cannot be compiled, before it costs a slot."""
        complaint = LLMatcher.validate_grammar(grammar)
        if complaint and not complaint.startswith("WARNING"):
            raise InvalidGrammar(f"no answer can follow it: {complaint}", param=param)

    def reconfigure(self, settings: ModelSettings) -> None:
        """Take the live settings of these, for requests that come from now on."""
        super().reconfigure(settings)
        self._precision.reconfigure(self.settings)

    def choose_precision(
        self, kind: RequestKind, *, named: Precision | None
    ) -> PrecisionChoice | None:
        """Return what to compute a request in; see `ServedPrecision.choose`."""
        return self._precision.choose(kind, named=named)

    async def generate(
        self,
        prompts: Sequence[list[int]],
        options: GenerateOptions,
        *,
        adapter: str | None = None,
    ) -> AsyncGenerator[TextDelta, None]:
        """Yield the answers of all prompts, interleaved as they grow; perhaps with an adapter on.

        Raises `AdapterNotFound` besides what the Protocol says.
        """
        self._check()
        if adapter is not None:
            self._check_adapter(adapter)
        self._check_lengths(prompts, options.sampling)
        answers = [
            _Answer(index, prompt, sampling, self, options, adapter=adapter)
            for index, (prompt, sampling) in enumerate(_fan_out(prompts, options))
        ]
        with self._admitted(len(answers)):
            try:
                async with asyncio.timeout(self.settings.request_timeout_s):
                    if len(answers) == 1:
                        async with aclosing(answers[0].run(self._replica)) as deltas:
                            async for delta in deltas:
                                yield delta
                    else:
                        async with aclosing(_interleave(answers, self._replica)) as deltas:
                            async for delta in deltas:
                                yield delta
            except TimeoutError:
                raise self._timed_out() from None

    # adapters

    @property
    def adapters(self) -> Mapping[str, ServedAdapter]:
        """The LoRA adapters that requests may name."""
        return self._replica.adapters.of(self.name)

    @property
    def takes_adapters(self) -> bool:
        """Whether adapters may be loaded and dropped over HTTP."""
        return bool(self.settings.adapter_dirs)

    async def load_adapter(self, name: str, path: str, *, replace: bool) -> None:
        """Load an adapter; see `Replica.load_adapter` and `serving.base.Deployments`."""
        self._check()
        self._check_takes_adapters()
        if name in self.adapters and not replace:
            raise AdapterRejected(
                f"lora_name: adapter {name!r} is loaded already; drop it first, or replace it with "
                "load_inplace",
                param="lora_name",
            )
        directories = [Path(directory) for directory in self.settings.adapter_dirs]
        place = await asyncio.to_thread(find_below, path, directories)
        await self._replica.load_adapter(self.name, AdapterSpec(name=name, path=str(place)))

    async def drop_adapter(self, name: str) -> None:
        """Drop an adapter; see `Replica.drop_adapter` and `serving.base.Deployments`."""
        self._check()
        self._check_takes_adapters()
        await self._replica.drop_adapter(self.name, name)

    def _check_takes_adapters(self) -> None:
        if not self.takes_adapters:
            raise AdapterLoadingOff(
                f"model {self.name!r} takes no adapters over HTTP: models.NAME.adapter_dirs lists "
                "no directory they may come from"
            )

    def _check_adapter(self, name: str) -> None:
        adapter = self.adapters.get(name)
        if adapter is None:
            raise AdapterNotFound(f"adapter {name!r} has been dropped", param="model")
        if adapter.fault:
            raise ModelUnavailable(adapter.fault)

    def _check_lengths(self, prompts: Sequence[list[int]], sampling: SamplingParams) -> None:
        limit = self.max_model_len
        for prompt in prompts:
            if not prompt:
                raise InvalidRequest("the prompt has no tokens", param="prompt")
            if len(prompt) >= limit:
                raise ContextLengthExceeded(
                    f"the prompt has {len(prompt)} tokens; model {self.name!r} takes {limit} with "
                    "the answer: shorten it",
                    param="messages",
                )
            if len(prompt) + sampling.max_tokens > limit:
                raise ContextLengthExceeded(
                    f"{len(prompt)} prompt tokens and max_tokens={sampling.max_tokens} exceed "
                    f"{limit}, the context of model {self.name!r}: ask for at most "
                    f"{limit - len(prompt)}",
                    param="max_tokens",
                )


class _Answer:
    """One generation and the text made of it so far."""

    def __init__(
        self,
        index: int,
        prompt: list[int],
        sampling: SamplingParams,
        owner: Generator,
        options: GenerateOptions,
        *,
        adapter: str | None,
    ) -> None:
        self._index = index
        self._adapter = adapter
        self._prompt = prompt
        self._sampling = sampling
        self._precision = options.precision
        self._owner = owner
        self._stop = StopStrings(options.stop, include=options.include_stop)
        self._detokenizer = owner.codec.detokenizer(prompt)
        eos = () if sampling.ignore_eos else owner.directory.eos_token_ids
        self._silent = frozenset((*eos, *sampling.stop_token_ids))

    async def run(self, replica: Replica) -> AsyncGenerator[TextDelta, None]:
        request = GenerateRequest(
            id=replica.next_id(),
            model=self._owner.name,
            prompt_token_ids=self._prompt,
            sampling=self._sampling,
            adapter=self._adapter,
            precision=self._precision,
        )
        async with aclosing(replica.stream(request)) as deltas:
            async for delta in deltas:
                text, reason = self._read(delta)
                yield TextDelta(
                    index=self._index,
                    text=text,
                    token_ids=delta.token_ids,
                    logprobs=self._describe(delta),
                    finish_reason=reason,
                    num_cached_tokens=delta.num_cached_tokens,
                )
                if reason is not None:
                    return  # closing the replica's stream aborts a generation cut by a stop string

    def _read(self, delta: TokenDelta) -> tuple[str, str | None]:
        """Return the text that may be shown and why the answer ends, if it does."""
        ids = delta.token_ids
        if delta.finish_reason == "stop" and ids and ids[-1] in self._silent:
            ids = ids[:-1]
        text = self._detokenizer.add(ids)
        if delta.finish_reason is not None:
            text += self._detokenizer.finish()
        shown, is_stopped = self._stop.add(text)
        if is_stopped:
            return shown, "stop"
        if delta.finish_reason is not None:
            shown += self._stop.finish()
        return shown, delta.finish_reason

    def _describe(self, delta: TokenDelta) -> list[PositionLogprobs] | None:
        if delta.logprobs is None:
            return None
        pairs = zip(delta.token_ids, delta.logprobs, strict=True)
        return [self._position(token, scores) for token, scores in pairs]

    def _position(self, token_id: int, scores: TokenLogprobs) -> PositionLogprobs:
        top = [self._token(alternative, logprob) for alternative, logprob in scores.top]
        return PositionLogprobs(chosen=self._token(token_id, scores.chosen), top=top)

    def _token(self, token_id: int, logprob: float) -> TokenText:
        text, data = self._owner.codec.token_text(token_id)
        return TokenText(token=text, token_bytes=data, logprob=logprob)


def _sampling_defaults(directory: ModelDirectory) -> SamplingDefaults:
    """Read what the model's makers recommend; a null or absent value is off."""
    given = directory.generation_config
    found = {name: value for name, value in given.items() if value is not None}
    try:
        return SamplingDefaults(
            temperature=float(found.get("temperature", 1.0)),
            top_p=float(found.get("top_p", 1.0)),
            top_k=int(found.get("top_k", 0)),
            min_p=float(found.get("min_p", 0.0)),
            repetition_penalty=float(found.get("repetition_penalty", 1.0)),
        )
    except (TypeError, ValueError) as error:
        raise ModelSourceError(
            f"{directory.path / 'generation_config.json'}: not a number: {error}"
        ) from error


def _fan_out(
    prompts: Sequence[list[int]], options: GenerateOptions
) -> Iterator[tuple[list[int], SamplingParams]]:
    """Give each of the `n` answers its own seed; the first keeps the caller's."""
    for prompt in prompts:
        # Not cryptography: reproducible draws.
        seeds = random.Random(options.sampling.seed)  # noqa: S311
        for number in range(options.n):
            if number == 0:
                yield prompt, options.sampling
                continue
            seed = None if options.sampling.seed is None else seeds.getrandbits(63)
            yield prompt, replace(options.sampling, seed=seed)


async def _interleave(answers: list[_Answer], replica: Replica) -> AsyncGenerator[TextDelta, None]:
    """Run several answers at once and yield their deltas as they come."""
    inbox: asyncio.Queue[TextDelta | None] = asyncio.Queue()

    async def pump(answer: _Answer) -> None:
        async with aclosing(answer.run(replica)) as deltas:
            async for delta in deltas:
                inbox.put_nowait(delta)

    async def pump_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for answer in answers:
                    group.create_task(pump(answer))
        finally:
            inbox.put_nowait(None)

    pumping = asyncio.create_task(pump_all())
    try:
        while (delta := await inbox.get()) is not None:
            yield delta
        try:
            await pumping
        except* DeepseekError as errors:
            raise _first(errors) from None
    finally:
        pumping.cancel()
        await asyncio.gather(pumping, return_exceptions=True)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
