"""A deployment under the name of one of its LoRA adapters."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from deepseek.core.precision import Precision
from deepseek.core.requests import Task
from deepseek.scheduling.precision.policy import PrecisionChoice, RequestKind
from deepseek.serving.adapters import ServedAdapter
from deepseek.serving.base import (
    DeploymentStatus,
    GenerateOptions,
    SamplingDefaults,
    TextDelta,
)
from deepseek.serving.deployments import Generator
from deepseek.serving.kept_decisions import KeptDecision


class AdaptedGenerator:
    """Implements `deepseek.serving.base.GenerateDeployment`: the base deployment, one adapter on.

    Tokenizer, chat template, limits and queue are the base deployment's.
    """

    def __init__(self, base: Generator, adapter: ServedAdapter) -> None:
        self.name = adapter.spec.name
        self.deployment_name = base.name
        self.default_max_tokens = base.default_max_tokens
        self.sampling_defaults: SamplingDefaults = base.sampling_defaults
        self._base = base
        self._adapter = adapter

    @property
    def max_model_len(self) -> int:
        return self._base.max_model_len

    @property
    def status(self) -> DeploymentStatus:
        """Describe the adapter; it is ready when its base is and its weights are loaded."""
        base = self._base.status
        reason = base.reason or self._adapter.fault
        return DeploymentStatus(
            name=self.name,
            task=Task.GENERATE,
            ready=not reason,
            reason=reason,
            created=self._adapter.created,
            max_model_len=base.max_model_len,
            parent=base.name,
            residency=base.residency,
        )

    @property
    def decisions(self) -> Sequence[KeptDecision]:
        """The last decisions about the base deployment, which batches for its adapters too."""
        return self._base.decisions

    @property
    def chat_template_source(self) -> str:
        return self._base.chat_template_source

    def render_chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        template_kwargs: dict[str, Any] | None = None,
    ) -> list[int]:
        return self._base.render_chat(messages, tools=tools, template_kwargs=template_kwargs)

    def tokenize(self, text: str) -> list[int]:
        return self._base.tokenize(text)

    def detokenize(self, token_ids: Sequence[int]) -> str:
        return self._base.detokenize(token_ids)

    def check_grammar(self, grammar: str, *, param: str) -> None:
        self._base.check_grammar(grammar, param=param)

    def choose_precision(
        self, kind: RequestKind, *, named: Precision | None
    ) -> PrecisionChoice | None:
        return self._base.choose_precision(kind, named=named)

    def generate(
        self, prompts: Sequence[list[int]], options: GenerateOptions
    ) -> AsyncGenerator[TextDelta, None]:
        """Return the adapter's answers; as the base's, and `AdapterNotFound` once it has gone."""
        return self._base.generate(prompts, options, adapter=self.name)
