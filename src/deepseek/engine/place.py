"""One model of a pool: where it is, and what has become of it so far."""

import math
from dataclasses import dataclass, field

from deepseek.core.requests import Task
from deepseek.core.residency import Residency
from deepseek.core.wire import DropAdapter, LoadAdapter, ModelInfo, ModelSpec
from deepseek.engine.base import Engine, Parkable
from deepseek.engine.hosted_model import HostedModel
from deepseek.scheduling.preloading.base import Tier

AdapterCommand = LoadAdapter | DropAdapter


@dataclass(slots=True, eq=False, kw_only=True)
class Place:
    """One model of the pool and where it is."""

    spec: ModelSpec
    model: HostedModel
    state: Residency
    num_bytes: int
    """Of its weights in memory; until it has been loaded once, of its files."""
    info: ModelInfo
    """What the platform was told of it last."""
    parked: Parkable | None = None
    """Its engine, while it is in the host tier only, and on its way back from there."""
    loaded_s: float = -math.inf
    """When it became ready."""
    load_s: float | None = None
    """What its last load took that somebody waited for."""
    read_s: float | None = None
    """The same of its last load from disk."""
    wake_s: float | None = None
    """The same of its last way from the host tier to the device."""
    called_since_s: float | None = None
    """When the first one came that waits without being in the queue: a request that was told to
    come back, or a command."""
    no_room_since_s: float | None = None
    """Since when it is waited for and nothing can make room."""
    is_retired: bool = False
    """Left for being idle, or found no memory: not to be loaded ahead before somebody asks for it
    again."""
    commands: list[AdapterCommand] = field(default_factory=list)
    """To be carried out when it is there."""
    num_loads: int = 0
    num_evictions: int = 0
    num_hits: int = 0
    num_misses: int = 0

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def is_pinned(self) -> bool:
        return self.spec.min_resident > 0 or self.model.qos.reserved_share > 0

    @property
    def may_park(self) -> bool:
        """Whether a load is to leave a copy in the host tier: what stays on the device needs none,
        and encoders are small and quickly read.
        """
        return self.spec.task is Task.GENERATE and not self.is_pinned

    @property
    def on_device(self) -> Engine | None:
        """The engine, where the model answers."""
        return self.model.engine if self.state is Residency.READY else None

    @property
    def has_host_copy(self) -> bool:
        """Whether the host tier holds its weights."""
        engine = self.on_device
        return self.parked is not None or (isinstance(engine, Parkable) and engine.can_park)

    @property
    def held(self) -> frozenset[Tier]:
        """Where whole copies of its weights are, disk left out."""
        on_device = [Tier.DEVICE] if self.state is Residency.READY else []
        return frozenset([*on_device, *([Tier.HOST] if self.has_host_copy else [])])

    @property
    def waiting_since_s(self) -> float | None:
        """When the first one came that waits for it."""
        known = (self.model.waiting_since_s, self.called_since_s)
        return min((since_s for since_s in known if since_s is not None), default=None)

    @property
    def idle_since_s(self) -> float:
        return max(self.loaded_s, self.model.used_s)
