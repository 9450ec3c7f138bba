"""Deployments without models, which implement the Protocols of `deepseek.serving.base`.

One character is one token. `echo` answers with what it was asked, `stuck` says one word and then
nothing, `silent` says nothing at all, `crashing` dies after two tokens, `caller` writes the text of
its last message word by word and knows tools. What the gateway asked for is kept, to be looked at.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher

from deepseek.core.decisions import Decision, TimeScale
from deepseek.core.errors import (
    AdapterNotFound,
    AdapterRejected,
    ContextLengthExceeded,
    DeepseekError,
    InvalidGrammar,
    InvalidRequest,
    ModelNotFound,
    UnsupportedParameter,
    WorkerCrashed,
    WrongTask,
)
from deepseek.core.precision import Precision
from deepseek.core.requests import Task
from deepseek.scheduling.precision.policy import PrecisionChoice, Reason, RequestKind
from deepseek.serving.base import (
    Administration,
    Deployments,
    DeploymentStatus,
    EncodedRows,
    GenerateDeployment,
    GenerateOptions,
    PositionLogprobs,
    SamplingDefaults,
    SettingChange,
    TextDelta,
    TokenText,
)
from deepseek.serving.kept_decisions import KeptDecision

ADAPTER_DIR = "/adapters/"
"""The fake deployments take adapters from here."""
Script = Callable[[str, GenerateOptions], AsyncGenerator[TextDelta, None]]


def position(char: str, *, num_top: int) -> PositionLogprobs:
    chosen = TokenText(token=char, token_bytes=char.encode(), logprob=-0.5)
    others = [
        TokenText(token=chr(ord("a") + rank), token_bytes=bytes([97 + rank]), logprob=-1.0 - rank)
        for rank in range(num_top)
    ]
    return PositionLogprobs(chosen=chosen, top=others)


def delta(text: str, options: GenerateOptions, *, index: int = 0, **fields: Any) -> TextDelta:
    num_top = options.sampling.num_logprobs
    logprobs = None if num_top is None else [position(c, num_top=num_top) for c in text]
    return TextDelta(
        index=index, text=text, token_ids=list(map(ord, text)), logprobs=logprobs, **fields
    )


async def echo(text: str, options: GenerateOptions) -> AsyncGenerator[TextDelta, None]:
    limit = options.sampling.max_tokens
    for number, char in enumerate(text[:limit]):
        await asyncio.sleep(0)
        yield delta(char, options, num_cached_tokens=2 if number == 0 else 0)
    reason = "length" if len(text) > limit else "stop"
    yield TextDelta(index=0, text="", finish_reason=reason)


async def say_words(text: str, options: GenerateOptions) -> AsyncGenerator[TextDelta, None]:
    words = text.split(" ")
    for number, word in enumerate(words):
        await asyncio.sleep(0)
        last = number == len(words) - 1
        yield delta(word if last else word + " ", options, finish_reason="stop" if last else None)


async def get_stuck(text: str, options: GenerateOptions) -> AsyncGenerator[TextDelta, None]:
    yield delta("one", options)
    await asyncio.Event().wait()


async def keep_silent(text: str, options: GenerateOptions) -> AsyncGenerator[TextDelta, None]:
    await asyncio.Event().wait()
    yield delta("never", options)


async def crash(text: str, options: GenerateOptions) -> AsyncGenerator[TextDelta, None]:
    yield delta("on", options)
    yield delta("ly", options)
    raise WorkerCrashed("the worker of pool 'default' died")


class FakeGenerator:
    """A language model that follows a script."""

    def __init__(
        self,
        name: str,
        script: Script = echo,
        *,
        template: str = "",
        max_model_len: int = 100_000,
        default_max_tokens: int | None = None,
        parent: str = "",
        precisions: Sequence[Precision] = (),
    ) -> None:
        self.name = name
        self.precisions = precisions
        self.kinds: list[RequestKind] = []
        self.deployment_name = parent or name
        self.max_model_len = max_model_len
        self.default_max_tokens = default_max_tokens
        self.sampling_defaults = SamplingDefaults()
        self.chat_template_source = template
        self.refusal: DeepseekError | None = None
        self.reason = ""
        self.asked: list[GenerateOptions] = []
        self.rendered: list[dict[str, Any]] = []
        self.num_open = 0
        self._script = script

    @property
    def status(self) -> DeploymentStatus:
        return DeploymentStatus(
            name=self.name,
            task=Task.GENERATE,
            ready=not self.reason,
            reason=self.reason,
            created=1_700_000_000,
            max_model_len=self.max_model_len,
            parent="" if self.deployment_name == self.name else self.deployment_name,
        )

    def render_chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        template_kwargs: dict[str, Any] | None = None,
    ) -> list[int]:
        if tools and not self.chat_template_source:
            raise UnsupportedParameter("this model's chat template knows no tools", param="tools")
        self.rendered.append({"messages": messages, "tools": tools, "kwargs": template_kwargs})
        return [*map(ord, messages[-1]["content"] or " ")]

    def tokenize(self, text: str) -> list[int]:
        return list(map(ord, text))

    def detokenize(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(token % 0xD800) for token in token_ids)

    def check_grammar(self, grammar: str, *, param: str) -> None:
        complaint = LLMatcher.validate_grammar(grammar)
        if complaint:
            raise InvalidGrammar(f"no answer can follow it: {complaint}", param=param)

    def choose_precision(
        self, kind: RequestKind, *, named: Precision | None
    ) -> PrecisionChoice | None:
        self.kinds.append(kind)
        if named is not None and named not in self.precisions:
            raise UnsupportedParameter(f"precision: no {named} here", param="precision")
        if not self.precisions:
            return None
        reason = Reason.DEFAULT if named is None else Reason.NAMED
        return PrecisionChoice(precision=named or self.precisions[0], reason=reason)

    async def generate(
        self, prompts: Sequence[list[int]], options: GenerateOptions
    ) -> AsyncGenerator[TextDelta, None]:
        self.asked.append(options)
        if self.refusal is not None:
            raise self.refusal
        self.num_open += 1
        try:
            for number, prompt in enumerate(prompts):
                for answer in range(options.n):
                    async for item in self._script(self.detokenize(prompt), options):
                        yield TextDelta(
                            index=number * options.n + answer,
                            text=item.text,
                            token_ids=item.token_ids,
                            logprobs=item.logprobs,
                            finish_reason=item.finish_reason,
                            num_cached_tokens=item.num_cached_tokens,
                        )
        finally:
            self.num_open -= 1


class FakeEncoder:
    """An encoder whose vector is (length, vowels, 1, 0) and whose logit k is k times the length."""

    def __init__(
        self,
        name: str,
        task: Task,
        *,
        labels: Sequence[str] = (),
        multi_label: bool = False,
        max_model_len: int = 512,
    ) -> None:
        self.name = name
        self.labels = labels
        self.multi_label = multi_label
        self.max_model_len = max_model_len
        self.reason = ""
        self.is_stuck = False
        self.num_open = 0
        self._task = task

    @property
    def status(self) -> DeploymentStatus:
        return DeploymentStatus(
            name=self.name, task=self._task, ready=not self.reason, reason=self.reason
        )

    def tokenize(self, text: str) -> list[int]:
        return list(map(ord, text))

    async def encode(
        self, inputs: Sequence[str | list[int]], *, truncate: bool = False
    ) -> EncodedRows:
        for index, item in enumerate(inputs):
            if len(item) > self.max_model_len and not truncate:
                raise ContextLengthExceeded(f"input {index} is too long", param=f"input[{index}]")
        self.num_open += 1
        try:
            if self.is_stuck:
                await asyncio.Event().wait()
        finally:
            self.num_open -= 1
        if self._task is Task.CLASSIFY:
            rows = [[k * min(len(item), 5) / 5 for k in range(len(self.labels))] for item in inputs]
        else:
            rows = [[len(item), _vowels(item), 1.0, 0.0] for item in inputs]
        num_tokens = sum(min(len(item), self.max_model_len) for item in inputs)
        return EncodedRows(rows=np.array(rows, dtype=np.float32), num_tokens=num_tokens)

    async def score(
        self, query: str, documents: Sequence[str], *, truncate: bool = False
    ) -> EncodedRows:
        if self._task is Task.CLASSIFY:
            raise WrongTask(f"model {self.name!r} classifies; it does not rerank", param="model")
        rows = [[len(set(query) & set(text)) / len(set(query))] for text in documents]
        num_tokens = len(query) + sum(map(len, documents))
        return EncodedRows(rows=np.array(rows, dtype=np.float32), num_tokens=num_tokens)


class FakeDeployments:
    """Every kind of deployment, by name."""

    def __init__(self) -> None:
        self.draining = False
        self.adapter_refusal: DeepseekError | None = None
        self.generators = {
            generator.name: generator
            for generator in (
                FakeGenerator("echo"),
                FakeGenerator("switching", precisions=[Precision.INT8, Precision.INT4]),
                FakeGenerator("small", max_model_len=32, default_max_tokens=8),
                FakeGenerator("stuck", get_stuck),
                FakeGenerator("silent", keep_silent),
                FakeGenerator("crashing", crash),
                FakeGenerator("caller", say_words, template="{{ tools }} <tool_call>"),
            )
        }
        labels = ("negative", "neutral", "positive")
        self.encoders = {
            encoder.name: encoder
            for encoder in (
                FakeEncoder("embedder", Task.EMBED),
                FakeEncoder("org/classifier", Task.CLASSIFY, labels=labels),
                FakeEncoder("tagger", Task.CLASSIFY, labels=labels, multi_label=True),
            )
        }

    @property
    def ready(self) -> bool:
        return all(status.ready for status in self.statuses())

    def generator(self, name: str) -> FakeGenerator:
        if name in self.encoders:
            raise WrongTask(f"model {name!r} does not generate text", param="model")
        if name not in self.generators:
            raise ModelNotFound(f"model {name!r} is not served here", param="model")
        return self.generators[name]

    def encoder(self, name: str) -> FakeEncoder:
        if name in self.generators:
            raise WrongTask(f"model {name!r} does not embed", param="model")
        if name not in self.encoders:
            raise ModelNotFound(f"model {name!r} is not served here", param="model")
        return self.encoders[name]

    def classifier(self, name: str) -> FakeEncoder:
        found = self.encoder(name)
        if not found.labels:
            raise WrongTask(f"model {name!r} does not classify", param="model")
        return found

    async def load_adapter(
        self, name: str, path: str, *, deployment: str | None = None, replace: bool = False
    ) -> DeploymentStatus:
        if self.adapter_refusal is not None:
            raise self.adapter_refusal
        base = self.generator(deployment or "echo")
        if name in self.generators and not replace:
            raise AdapterRejected(f"adapter {name!r} is loaded already", param="lora_name")
        if not path.startswith(ADAPTER_DIR):
            raise AdapterRejected("no such directory", param="lora_path")
        self.generators[name] = FakeGenerator(name, parent=base.name)
        return self.generators[name].status

    async def drop_adapter(self, name: str) -> None:
        if self.adapter_refusal is not None:
            raise self.adapter_refusal
        found = self.generators.get(name)
        if found is None or found.deployment_name == name:
            raise AdapterNotFound(f"no adapter {name!r} is loaded", param="lora_name")
        del self.generators[name]

    def statuses(self) -> list[DeploymentStatus]:
        generators = [generator.status for generator in self.generators.values()]
        return generators + [encoder.status for encoder in self.encoders.values()]


class FakeAdministration:
    """Takes any file whose models are all called `served`; knows decisions about that one."""

    def __init__(self) -> None:
        self.applied: list[Any] = []
        self.refusal: DeepseekError | None = None

    async def apply(self, deployment: Any) -> list[SettingChange]:
        if self.refusal is not None:
            raise self.refusal
        if unknown := [name for name in deployment["models"] if name != "served"]:
            raise InvalidRequest(f"models.{unknown[0]}: is not served", param="models")
        self.applied.append(deployment)
        return [SettingChange(model="served", setting="share", before=1.0, after=2.0)]

    def decisions(self, model: str) -> Sequence[KeptDecision]:
        if model != "served":
            raise ModelNotFound(f"model {model!r} is not served here", param="model")
        decision = Decision(
            at_s=5.0,
            model=model,
            scale=TimeScale.MEDIUM,
            action="raise-batch-cap",
            reason="the queue has grown to 9",
            signals={"num_waiting": 9, "oldest_wait_s": 0.25, "temperature_c": None},
        )
        return [KeptDecision(decision=decision, heard_at=time.time() - 90)]


def _vowels(item: str | list[int]) -> float:
    text = item if isinstance(item, str) else "".join(map(chr, item))
    return float(sum(char in "aeiou" for char in text))


def check_protocols() -> tuple[GenerateDeployment, Deployments, Administration]:
    """For the type checker: the fakes are what the gateway expects."""
    return FakeGenerator("typed"), FakeDeployments(), FakeAdministration()
