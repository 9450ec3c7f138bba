"""The routes that describe the platform: models, health, metrics."""

import msgspec

from deepseek.core.errors import ModelNotFound
from deepseek.gateway.exchange import Exchange
from deepseek.gateway.parts import Parts
from deepseek.gateway.protocol_operations import (
    Liveness,
    Model,
    ModelList,
    ModelReadiness,
    Readiness,
)
from deepseek.serving.base import DeploymentStatus
from deepseek.telemetry.metrics import CONTENT_TYPE

_encode = msgspec.json.Encoder().encode
_LIVE = _encode(Liveness())


class Operations:
    """What operators and their tools ask."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def list_models(self, exchange: Exchange) -> None:
        """Name every deployment and every adapter."""
        models = [model_body(status) for status in self._parts.deployments.statuses()]
        await exchange.answer(_encode(ModelList(data=models)))

    async def show_model(self, exchange: Exchange) -> None:
        """Describe one deployment or adapter."""
        name = exchange.path_params["model"]
        statuses = self._parts.deployments.statuses()
        found = next((status for status in statuses if status.name == name), None)
        if found is None:
            served = ", ".join(status.name for status in statuses)
            raise ModelNotFound(
                f"model {name!r} is not served here; served: {served}", param="model"
            )
        await exchange.answer(_encode(model_body(found)))

    async def live(self, exchange: Exchange) -> None:
        """Answer, as long as the process can."""
        await exchange.answer(_LIVE)

    async def ready(self, exchange: Exchange) -> None:
        """Say whether requests would be served, and of each model that would not, why."""
        models = [
            ModelReadiness(
                name=s.name,
                task=s.task.value,
                ready=s.ready,
                reason=s.reason,
                residency=s.residency,
            )
            for s in self._parts.deployments.statuses()
        ]
        if self._parts.is_draining:
            readiness = Readiness(status="draining", models=models)
        elif self._parts.deployments.ready:
            readiness = Readiness(status="ready", models=models)
        else:
            readiness = Readiness(status="not_ready", models=models)
        status = 200 if readiness.status == "ready" else 503
        await exchange.answer(_encode(readiness), status=status)

    async def metrics(self, exchange: Exchange) -> None:
        """Show every metric in Prometheus' text format."""
        await exchange.answer(self._parts.metrics.render(), media=CONTENT_TYPE.encode())


def model_body(status: DeploymentStatus) -> Model:
    """Return a deployment or adapter as the API shows it."""
    return Model(
        id=status.name,
        created=status.created,
        task=status.task.value,
        max_model_len=status.max_model_len,
        ready=status.ready,
        parent=status.parent or None,
        residency=status.residency,
    )
