"""`PUT /admin/deployment` and `GET /admin/decisions/{model}`: what operators ask."""

import time
from collections.abc import Awaitable, Callable

import msgspec

from deepseek.gateway.body import BodyDecoder, read_json_body
from deepseek.gateway.errors import RouteNotFound
from deepseek.gateway.exchange import Exchange
from deepseek.gateway.parts import Parts
from deepseek.gateway.protocol_administration import (
    AppliedChanges,
    AppliedSetting,
    DecisionBody,
    DecisionList,
    DeploymentBody,
)
from deepseek.gateway.settings import is_loopback
from deepseek.serving.base import Administration
from deepseek.serving.kept_decisions import KeptDecision

_encode = msgspec.json.Encoder().encode


class UnderLoopbackName:
    """Answers only who calls this machine by a loopback name or address.

    A web page may have its own name lead to 127.0.0.1 (DNS rebinding): to its reader's browser the
    server is then that page's own, and what it may ask is no longer limited.
    """

    def __init__(self, handler: Callable[[Exchange], Awaitable[None]]) -> None:
        self._handler = handler

    async def __call__(self, exchange: Exchange) -> None:
        host = _without_port((exchange.header(b"host") or b"").decode("latin-1"))
        if not is_loopback(host.lower()):
            raise RouteNotFound(
                f"{exchange.path!r} is there under the names localhost and 127.0.0.1 only, not "
                f"{host!r}, unless the server's file says `gateway: {{admin: true}}`"
            )
        await self._handler(exchange)


class ApplyRoute:
    """Takes another deployment file's shares, QoS and precision."""

    def __init__(self, parts: Parts, administration: Administration) -> None:
        self._parts = parts
        self._administration = administration
        self._decoder = BodyDecoder(DeploymentBody)

    async def __call__(self, exchange: Exchange) -> None:
        body = await read_json_body(exchange, self._parts.settings)
        await exchange.attend(self._answer(exchange, self._decoder.decode(body)))

    async def _answer(self, exchange: Exchange, request: DeploymentBody) -> None:
        changes = await self._administration.apply(msgspec.to_builtins(request))
        applied = [
            AppliedSetting(
                model=change.model,
                setting=change.setting,
                before=change.before,
                after=change.after,
            )
            for change in changes
        ]
        await exchange.answer(_encode(AppliedChanges(data=applied)))


class DecisionsRoute:
    """Shows the last decisions about a model."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def __call__(self, exchange: Exchange) -> None:
        model = exchange.path_params["model"]
        kept = self._administration.decisions(model)
        body = DecisionList(model=model, data=[_decision_body(one) for one in kept])
        await exchange.answer(_encode(body))


def _without_port(host: str) -> str:
    if host.startswith("["):  # an IPv6 address
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _decision_body(kept: KeptDecision) -> DecisionBody:
    decision = kept.decision
    return DecisionBody(
        at=kept.heard_at,
        age_s=round(max(0.0, time.time() - kept.heard_at), 3),
        model=decision.model,
        scale=decision.scale.value,
        action=decision.action,
        reason=decision.reason,
        signals=decision.signals,
    )
