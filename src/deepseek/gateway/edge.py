"""The edge itself: one ASGI application over the deployments.

Life of a request here: an `Exchange` is made and named; the router finds the route; the route reads
and checks the body, finds the deployment, and answers or streams; whatever goes wrong comes back
here as an exception and becomes an OpenAI-shaped error; the request is counted.
"""

import logging
import time

import msgspec
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

import deepseek
from deepseek.core.errors import DeepseekError
from deepseek.gateway.drain import Drain
from deepseek.gateway.errors import InternalError, MethodNotAllowed, RouteNotFound, status_of
from deepseek.gateway.exchange import CLIENT_CLOSED_STATUS, ClientDisconnected, Exchange
from deepseek.gateway.openapi import openapi_document
from deepseek.gateway.operations import Operations
from deepseek.gateway.parts import Parts
from deepseek.gateway.protocol_operations import Index
from deepseek.gateway.routes import (
    EXCHANGE_KEY,
    RouteSpec,
    adapter_routes,
    administration_routes,
    build_router,
    document_routes,
    operation_routes,
    work_routes,
)
from deepseek.gateway.settings import GatewaySettings
from deepseek.serving.base import Administration, Deployments
from deepseek.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


def build_gateway(
    deployments: Deployments,
    settings: GatewaySettings,
    *,
    metrics: Metrics,
    drain: Drain | None = None,
    administration: Administration | None = None,
) -> "Edge":
    """Return the edge over `deployments` as an ASGI application.

    `drain` knows the running requests; a server that wants to shut down in order passes its own.
    Without `administration` there are no routes under `/admin`.
    """
    return Edge(
        Parts(
            deployments=deployments,
            settings=settings,
            metrics=metrics,
            drain=drain or Drain(),
            administration=administration,
        )
    )


class Edge:
    """The ASGI application."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._specs: list[RouteSpec] = [
            *work_routes(parts),
            *adapter_routes(parts),
            *operation_routes(Operations(parts)),
            *administration_routes(parts),
            *document_routes(openapi=self._openapi, index=self._index),
        ]
        self._router = build_router(self._specs, parts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the edge does not speak {scope['type']}")
        exchange = Exchange(scope, receive, send)
        scope[EXCHANGE_KEY] = exchange
        scope["app"] = self  # makes the router raise for a wrong method
        code = CLIENT_CLOSED_STATUS
        try:
            await self._run(exchange, scope, receive, send)
            code = exchange.status
        except ClientDisconnected:
            pass
        finally:
            self._count(exchange, code)

    async def _run(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._router(scope, receive, send)
        except ClientDisconnected:
            raise
        except HTTPException as error:
            await self._fail(exchange, _from_starlette(error, exchange))
        except DeepseekError as error:
            if status_of(error) >= 500:
                logger.warning("request %s: %s", exchange.request_id.decode(), error.message)
            await self._fail(exchange, error)
        except Exception:
            name = exchange.request_id.decode()
            logger.exception("request %s to %s failed", name, exchange.path)
            fault = InternalError(f"the server failed; its log says why under request id {name}")
            await self._fail(exchange, fault)

    async def _fail(self, exchange: Exchange, error: DeepseekError) -> None:
        if exchange.is_streaming:
            self._parts.metrics.stream_failed(model=exchange.model, code=error.code)
        await exchange.fail(error)

    def _count(self, exchange: Exchange, code: int) -> None:
        metrics = self._parts.metrics
        if exchange.route == "unmatched":
            metrics.request_started(exchange.route)
        duration_s = time.perf_counter() - exchange.started_at
        metrics.request_finished(
            exchange.route, model=exchange.model, code=code, duration_s=duration_s
        )

    async def _openapi(self, exchange: Exchange) -> None:
        await exchange.answer(openapi_document(self._specs, self._parts))

    async def _index(self, exchange: Exchange) -> None:
        routes = {f"{spec.method} {spec.path}": spec.summary for spec in self._specs}
        index = Index(name="deepseek", version=deepseek.__version__, routes=routes)
        await exchange.answer(msgspec.json.encode(index))


def _from_starlette(error: HTTPException, exchange: Exchange) -> DeepseekError:
    if error.status_code == 405:
        allow = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
        return MethodNotAllowed(
            f"{exchange.method} is not allowed on {exchange.path}; use {allow}", allow=allow
        )
    return RouteNotFound(f"no route {exchange.path!r}; GET / names the routes")
