"""What the routes are given."""

from dataclasses import dataclass

from deepseek.gateway.drain import Drain
from deepseek.gateway.settings import GatewaySettings
from deepseek.serving.base import Administration, Deployments
from deepseek.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The rooms below, and the state that the routes share."""

    deployments: Deployments
    settings: GatewaySettings
    metrics: Metrics
    drain: Drain
    administration: Administration | None = None
    """None: nobody may administer over HTTP."""

    @property
    def is_draining(self) -> bool:
        return self.drain.is_draining or self.deployments.draining
