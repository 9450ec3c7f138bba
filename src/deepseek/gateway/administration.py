"""`PUT /admin/deployment` and `GET /admin/decisions/{model}`: what operators ask."""

import time

import msgspec

from deepseek.gateway.body import BodyDecoder, read_json_body
from deepseek.gateway.exchange import Exchange
from deepseek.gateway.parts import Parts
from deepseek.gateway.protocol_administration import (
    AppliedChanges,
    AppliedSetting,
    DecisionBody,
    DecisionList,
    DeploymentBody,
)
from deepseek.serving.base import Administration
from deepseek.serving.kept_decisions import KeptDecision

_encode = msgspec.json.Encoder().encode


class ApplyRoute:
    """Takes another deployment file's shares and QoS."""

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
