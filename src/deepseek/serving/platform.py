"""All deployments of one file and the replicas behind them."""

import asyncio
import logging

from deepseek.core.errors import ModelNotFound, WrongTask
from deepseek.core.requests import Task
from deepseek.serving.base import DeploymentStatus
from deepseek.serving.deployments import Deployment, Generator
from deepseek.serving.encoders import EncoderDeployment
from deepseek.serving.replica import Replica

logger = logging.getLogger(__name__)

_EXIT_GRACE_S = 5.0


class Platform:
    """Implements `deepseek.serving.base.Deployments`."""

    def __init__(self, deployments: list[Deployment], replicas: list[Replica]) -> None:
        self._deployments = {deployment.name: deployment for deployment in deployments}
        self._replicas = replicas
        self._draining = False

    @property
    def replicas(self) -> list[Replica]:
        return list(self._replicas)

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def ready(self) -> bool:
        """True when every deployment can take a request."""
        return not self._draining and all(status.ready for status in self.statuses())

    def statuses(self) -> list[DeploymentStatus]:
        """Describe every deployment, in the file's order."""
        return [deployment.status for deployment in self._deployments.values()]

    def generator(self, name: str) -> Generator:
        """Return a language model; raises `ModelNotFound` or `WrongTask`."""
        deployment = self._find(name)
        if not isinstance(deployment, Generator):
            raise self._wrong(deployment, "does not generate text", Task.GENERATE)
        return deployment

    def encoder(self, name: str) -> EncoderDeployment:
        """Return an embedder or classifier; raises `ModelNotFound` or `WrongTask`."""
        deployment = self._find(name)
        if not isinstance(deployment, EncoderDeployment):
            raise self._wrong(deployment, "does not embed or classify", Task.EMBED, Task.CLASSIFY)
        return deployment

    def classifier(self, name: str) -> EncoderDeployment:
        """Return a classifier; raises `ModelNotFound` or `WrongTask`."""
        deployment = self._find(name)
        if not isinstance(deployment, EncoderDeployment) or not deployment.labels:
            raise self._wrong(deployment, "does not classify", Task.CLASSIFY)
        return deployment

    async def start(self) -> None:
        """Start every worker and wait for its models; raises `Unavailable`."""
        async with asyncio.TaskGroup() as group:
            for replica in self._replicas:
                group.create_task(replica.start())

    def begin_drain(self) -> None:
        """Refuse new requests from now on."""
        self._draining = True
        for deployment in self._deployments.values():
            deployment.draining = True

    async def stop(self, *, drain_timeout_s: float) -> None:
        """Wait for running requests, at most `drain_timeout_s`, then end the workers."""
        self.begin_drain()
        idle = [asyncio.ensure_future(replica.idle.wait()) for replica in self._replicas]
        _, late = await asyncio.wait(idle, timeout=drain_timeout_s)
        for waiting in late:
            waiting.cancel()
        if self.num_in_flight:
            logger.warning("%d requests did not finish in time", self.num_in_flight)
        await asyncio.gather(*(r.stop(grace_s=_EXIT_GRACE_S) for r in self._replicas))

    @property
    def num_in_flight(self) -> int:
        return sum(replica.num_pending for replica in self._replicas)

    def _find(self, name: str) -> Deployment:
        deployment = self._deployments.get(name)
        if deployment is None:
            known = ", ".join(sorted(self._deployments))
            raise ModelNotFound(
                f"model {name!r} is not served here; served: {known}", param="model"
            )
        return deployment

    def _wrong(self, deployment: Deployment, what: str, *tasks: Task) -> WrongTask:
        able = [d.name for d in self._deployments.values() if d.task in tasks]
        instead = f"use one of: {', '.join(able)}" if able else "no model here does"
        return WrongTask(f"model {deployment.name!r} {what}; {instead}", param="model")
