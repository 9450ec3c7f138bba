"""All deployments of one file and the replicas behind them."""

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from deepseek.core.errors import (
    AdapterLoadingOff,
    AdapterNotFound,
    AdapterRejected,
    DeepseekError,
    InvalidRequest,
    ModelNotFound,
    RequestTimeout,
    Unavailable,
    WrongTask,
)
from deepseek.core.qos import QoS
from deepseek.core.requests import Task
from deepseek.serving.adapted import AdaptedGenerator
from deepseek.serving.base import DeploymentStatus
from deepseek.serving.deployments import Deployment, Generator
from deepseek.serving.encoders import EncoderDeployment
from deepseek.serving.kept_decisions import KeptDecision
from deepseek.serving.qos_faults import check_engine_takes_qos
from deepseek.serving.replica import Replica
from deepseek.serving.settings import ModelSettings

logger = logging.getLogger(__name__)

_EXIT_GRACE_S = 5.0


class Platform:
    """Implements `deepseek.serving.base.Deployments`."""

    def __init__(self, deployments: list[Deployment], replicas: list[Replica]) -> None:
        self._deployments = {deployment.name: deployment for deployment in deployments}
        self._replicas = replicas
        self._changing: dict[str, asyncio.Task[None]] = {}
        """Adapters that are being loaded or dropped."""
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
        deployments = self._deployments.values()
        return not self._draining and all(deployment.status.ready for deployment in deployments)

    def statuses(self) -> list[DeploymentStatus]:
        """Describe every deployment, in the file's order, then every adapter."""
        deployments = [deployment.status for deployment in self._deployments.values()]
        return deployments + [adapted.status for adapted in self._adapted()]

    def generator(self, name: str) -> Generator | AdaptedGenerator:
        """Return a language model; raises `ModelNotFound` or `WrongTask`."""
        deployment = self._find(name)
        if not isinstance(deployment, Generator | AdaptedGenerator):
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

    async def load_adapter(
        self, name: str, path: str, *, deployment: str | None = None, replace: bool = False
    ) -> DeploymentStatus:
        """Load an adapter; see `deepseek.serving.base.Deployments`."""
        base = self._adapter_base(deployment)
        owner = self._owner(name)
        if name in self._deployments or owner not in (None, base):
            raise AdapterRejected(
                f"lora_name: {name!r} is what another model is called here", param="lora_name"
            )
        await self._change(name, base, base.load_adapter(name, path, replace=replace))
        return AdaptedGenerator(base, base.adapters[name]).status

    async def drop_adapter(self, name: str) -> None:
        """Drop an adapter; see `deepseek.serving.base.Deployments`."""
        owner = self._owner(name)
        if owner is None:
            raise AdapterNotFound(f"lora_name: no adapter {name!r} is loaded", param="lora_name")
        await self._change(name, owner, owner.drop_adapter(name))

    async def reconfigure(self, models: Mapping[str, ModelSettings]) -> None:
        """Serve these models with the live settings given here, all of them or none.

        Returns once every worker has taken them. Raises `Unavailable` and `ConfigurationError`. To
        be called once at a time, and not to be cancelled.
        """
        for name, settings in models.items():
            check_engine_takes_qos(name, settings, self._deployments[name].directory)
        replicas = [r for r in self._replicas if not models.keys().isdisjoint(r.qos)]
        for replica in replicas:
            replica.check_ready()
        done: list[tuple[Replica, dict[str, QoS]]] = []
        for replica in replicas:
            before = replica.qos
            try:
                await replica.reconfigure(
                    {name: models[name].to_qos() for name in before if name in models}
                )
            except DeepseekError:
                await _take_back(done)
                raise
            done.append((replica, before))
        for name, settings in models.items():
            self._deployments[name].reconfigure(settings)

    def decisions(self, model: str) -> Sequence[KeptDecision]:
        """Return the last decisions about a model, oldest first; raises `ModelNotFound`.

        An adapter's are those of the deployment that serves it.
        """
        return self._find(model).decisions

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

    def _find(self, name: str) -> Deployment | AdaptedGenerator:
        deployment = self._deployments.get(name)
        if deployment is not None:
            return deployment
        owner = self._owner(name)
        if owner is not None:
            return AdaptedGenerator(owner, owner.adapters[name])
        known = sorted((*self._deployments, *(adapted.name for adapted in self._adapted())))
        raise ModelNotFound(
            f"model {name!r} is not served here; served: {', '.join(known)}", param="model"
        )

    def _wrong(
        self, deployment: Deployment | AdaptedGenerator, what: str, *tasks: Task
    ) -> WrongTask:
        able = [d.name for d in self._deployments.values() if d.task in tasks]
        instead = f"use one of: {', '.join(able)}" if able else "no model here does"
        return WrongTask(f"model {deployment.name!r} {what}; {instead}", param="model")

    # adapters

    def _generators(self) -> list[Generator]:
        return [d for d in self._deployments.values() if isinstance(d, Generator)]

    def _adapted(self) -> list[AdaptedGenerator]:
        return [
            AdaptedGenerator(base, adapter)
            for base in self._generators()
            for adapter in base.adapters.values()
        ]

    def _owner(self, adapter: str) -> Generator | None:
        return next((base for base in self._generators() if adapter in base.adapters), None)

    def _adapter_base(self, name: str | None) -> Generator:
        """Return the deployment to load an adapter for: the named one, or the only one."""
        if name is not None:
            found = self.generator(name)
            if isinstance(found, AdaptedGenerator):
                raise InvalidRequest(
                    f"model: {name!r} is an adapter itself; name its base, "
                    f"{found.deployment_name!r}",
                    param="model",
                )
            return found
        able = [base for base in self._generators() if base.takes_adapters]
        if not able:
            raise AdapterLoadingOff(
                "no model here takes adapters over HTTP: models.NAME.adapter_dirs lists no "
                "directory they may come from"
            )
        if len(able) > 1:
            names = ", ".join(base.name for base in able)
            raise InvalidRequest(
                f"model: several models take adapters ({names}); name the one to adapt",
                param="model",
            )
        return able[0]

    async def _change(self, name: str, base: Generator, change: Coroutine[Any, Any, None]) -> None:
        """Carry out a load or drop to its end, also when the caller leaves; one a name at a time.

        A caller that left half-way would leave a worker that has what nobody knows of.
        """
        if name in self._changing:
            change.close()
            raise Unavailable(f"adapter {name!r} is being loaded or dropped; ask again")
        task = asyncio.create_task(change, name=f"adapter {name}")
        self._changing[name] = task
        task.add_done_callback(lambda done: self._changed(name, done))
        limit_s = base.settings.request_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.shield(task)
        except TimeoutError:
            raise RequestTimeout(
                f"adapter {name!r}: not done within request_timeout_s={limit_s:g}; it goes on"
            ) from None

    def _changed(self, name: str, task: "asyncio.Task[None]") -> None:
        del self._changing[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("adapter %s: %s", name, error)


async def _take_back(done: Sequence[tuple[Replica, Mapping[str, QoS]]]) -> None:
    """Give workers back what they had before a change that another one has refused."""
    for replica, before in done:
        replica.begin_with(before)
        try:
            await replica.reconfigure(before)
        except DeepseekError as error:
            # It has died, then; its successor begins with what it had before.
            logger.warning("pool %s: QoS could not be taken back: %s", replica.pool, error)
