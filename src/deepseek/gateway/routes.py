"""Every route of the edge in one table: what it takes, what it gives, who answers.

The router and the OpenAPI document are both made from it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from deepseek.core.errors import AdapterLoadingOff, DeepseekError, Draining
from deepseek.core.requests import Task
from deepseek.gateway.adapters import DropAdapterRoute, LoadAdapterRoute
from deepseek.gateway.administration import ApplyRoute, DecisionsRoute, UnderLoopbackName
from deepseek.gateway.chat import ChatRoute
from deepseek.gateway.completions import CompletionsRoute
from deepseek.gateway.encoders import ClassifyRoute, EmbeddingsRoute, RerankRoute
from deepseek.gateway.errors import RouteNotFound
from deepseek.gateway.exchange import Exchange
from deepseek.gateway.operations import Operations
from deepseek.gateway.parts import Parts
from deepseek.gateway.protocol_administration import (
    AppliedChanges,
    DecisionList,
    DeploymentBody,
)
from deepseek.gateway.protocol_chat import ChatCompletion, ChatRequest
from deepseek.gateway.protocol_completions import Completion, CompletionRequest
from deepseek.gateway.protocol_encoders import (
    ClassificationList,
    ClassifyRequest,
    EmbeddingList,
    EmbeddingsRequest,
    RerankRequest,
    RerankResults,
)
from deepseek.gateway.protocol_operations import (
    DropAdapterRequest,
    DroppedAdapter,
    Index,
    Liveness,
    LoadAdapterRequest,
    Model,
    ModelList,
    Readiness,
)
from deepseek.serving.base import Administration

EXCHANGE_KEY = "deepseek.exchange"
Handler = Callable[[Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSpec:
    """One route; those that take a body are refused while the server shuts down."""

    path: str
    name: str
    summary: str
    handler: Handler
    request: Any = None
    """The Struct of the body; None for GET."""
    replaces: bool = False
    """The body takes the place of what is there: PUT instead of POST."""
    response: Any = None
    """The Struct of the answer, or None for `media`."""
    media: str = "application/json"
    tasks: tuple[Task, ...] = ()
    """What a deployment must do to answer here."""
    reranks: bool = False
    """A classifier of several labels cannot answer here."""
    adapts: bool = False
    """An adapter cannot answer here, only a deployment that takes adapters."""
    streams: bool = False
    errors: tuple[type[DeepseekError], ...] = ()
    """What it may raise besides the errors of every route with a body."""
    not_ready: Any = None
    """The Struct of the answer with status 503, where that is no error."""

    @property
    def method(self) -> str:
        if self.request is None:
            return "GET"
        return "PUT" if self.replaces else "POST"


def work_routes(parts: Parts) -> list[RouteSpec]:
    """Return the routes that run models."""
    return [
        RouteSpec(
            path="/v1/chat/completions",
            name="createChatCompletion",
            summary="Continue a conversation",
            handler=ChatRoute(parts),
            request=ChatRequest,
            response=ChatCompletion,
            tasks=(Task.GENERATE,),
            streams=True,
        ),
        RouteSpec(
            path="/v1/completions",
            name="createCompletion",
            summary="Continue a text",
            handler=CompletionsRoute(parts),
            request=CompletionRequest,
            response=Completion,
            tasks=(Task.GENERATE,),
            streams=True,
        ),
        RouteSpec(
            path="/v1/embeddings",
            name="createEmbedding",
            summary="Embed texts",
            handler=EmbeddingsRoute(parts),
            request=EmbeddingsRequest,
            response=EmbeddingList,
            tasks=(Task.EMBED, Task.CLASSIFY),
        ),
        RouteSpec(
            path="/v1/rerank",
            name="rerank",
            summary="Order documents by relevance",
            handler=RerankRoute(parts),
            request=RerankRequest,
            response=RerankResults,
            tasks=(Task.EMBED, Task.CLASSIFY),
            reranks=True,
        ),
        RouteSpec(
            path="/v1/classify",
            name="classify",
            summary="Classify texts",
            handler=ClassifyRoute(parts),
            request=ClassifyRequest,
            response=ClassificationList,
            tasks=(Task.CLASSIFY,),
        ),
    ]


def adapter_routes(parts: Parts) -> list[RouteSpec]:
    """Return the routes that load and drop LoRA adapters."""
    return [
        RouteSpec(
            path="/v1/load_lora_adapter",
            name="loadLoraAdapter",
            summary="Serve a LoRA adapter",
            handler=LoadAdapterRoute(parts),
            request=LoadAdapterRequest,
            response=Model,
            tasks=(Task.GENERATE,),
            adapts=True,
            errors=(AdapterLoadingOff,),
        ),
        RouteSpec(
            path="/v1/unload_lora_adapter",
            name="unloadLoraAdapter",
            summary="Serve a LoRA adapter no longer",
            handler=DropAdapterRoute(parts),
            request=DropAdapterRequest,
            response=DroppedAdapter,
            errors=(AdapterLoadingOff,),
        ),
    ]


def operation_routes(operations: Operations) -> list[RouteSpec]:
    """Return the routes that describe the platform."""
    return [
        RouteSpec(
            path="/v1/models",
            name="listModels",
            summary="Name the deployments and their adapters",
            handler=operations.list_models,
            response=ModelList,
        ),
        RouteSpec(
            path="/v1/models/{model}",
            name="retrieveModel",
            summary="Describe a deployment or adapter",
            handler=operations.show_model,
            response=Model,
        ),
        RouteSpec(
            path="/health/live",
            name="live",
            summary="Whether the process answers",
            handler=operations.live,
            response=Liveness,
        ),
        RouteSpec(
            path="/health/ready",
            name="ready",
            summary="Whether every deployment takes requests",
            handler=operations.ready,
            response=Readiness,
            not_ready=Readiness,
        ),
        RouteSpec(
            path="/metrics",
            name="metrics",
            summary="Metrics for Prometheus",
            handler=operations.metrics,
            media="text/plain",
        ),
    ]


def administration_routes(parts: Parts) -> list[RouteSpec]:
    """Return the routes for operators; none where `gateway.admin` keeps them off."""
    administration: Administration | None = parts.administration
    if administration is None:
        return []
    apply: Handler = ApplyRoute(parts, administration)
    decisions: Handler = DecisionsRoute(administration)
    if parts.settings.admin is None:
        apply, decisions = UnderLoopbackName(apply), UnderLoopbackName(decisions)
    return [
        RouteSpec(
            path="/admin/deployment",
            name="applyDeployment",
            summary="Take shares, QoS and precision from another deployment file",
            handler=apply,
            request=DeploymentBody,
            replaces=True,
            response=AppliedChanges,
        ),
        RouteSpec(
            path="/admin/decisions/{model}",
            name="listDecisions",
            summary="Show the last batching decisions about a model",
            handler=decisions,
            response=DecisionList,
        ),
    ]


def document_routes(*, openapi: Handler, index: Handler) -> list[RouteSpec]:
    """Return the routes that describe the other routes."""
    return [
        RouteSpec(
            path="/openapi.json",
            name="openapi",
            summary="This document",
            handler=openapi,
            response=dict[str, Any],
        ),
        RouteSpec(path="/", name="index", summary="Name the routes", handler=index, response=Index),
    ]


def build_router(specs: list[RouteSpec], parts: Parts) -> Router:
    """Return the router of these routes; it raises, and leaves the answer to the edge."""
    router = Router(redirect_slashes=False, default=_not_found)
    for spec in specs:
        # A model may be named like `organisation/model`.
        path = spec.path.replace("{model}", "{model:path}")
        router.add_route(path, _Endpoint(spec, parts), methods=[spec.method])  # type: ignore[arg-type]
    return router


class _Endpoint:
    """One route as an ASGI application."""

    def __init__(self, spec: RouteSpec, parts: Parts) -> None:
        self._spec = spec
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[EXCHANGE_KEY]
        exchange.route = self._spec.path
        self._parts.metrics.request_started(self._spec.path)
        if self._spec.request is None:
            await self._spec.handler(exchange)
            return
        if self._parts.is_draining:
            raise Draining("the server is shutting down; send the request again")
        with self._parts.drain.running(exchange):
            await self._spec.handler(exchange)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    raise RouteNotFound(f"no route {scope['path']!r}; GET / names the routes")
