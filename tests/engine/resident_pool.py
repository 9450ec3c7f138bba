"""Models that come and go as `Residents` decide, without a worker: what tests ask and look at."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

from deepseek.core.qos import QoS
from deepseek.core.requests import Task
from deepseek.core.residency import Residency
from deepseek.core.wire import Event, Failed, ModelInfo, ModelSpec
from deepseek.engine.absent_engine import AbsentEngine
from deepseek.engine.base import Engine
from deepseek.engine.hosted_model import HostedModel
from deepseek.engine.load_pace import LoadPace
from deepseek.engine.model_loader import ModelLoader, ModelRead
from deepseek.engine.outlook import TierSizes
from deepseek.engine.place import Place
from deepseek.engine.residency import Residents
from deepseek.engine.selection import absent_info
from deepseek.engine.step_loop import Inbox
from deepseek.scheduling.preloading.registry import make_preloading_policy
from deepseek.telemetry.meters import ModelMeter
from tests.engine.one_token import one_token
from tests.engine.parkable import AdaptableEngine, Memories

MB = 10**6
MODEL_BYTES = 100 * MB
NUM_LAYERS = 20


class Pool:
    """Models of 100 MB in 20 layers, loaded as soon as they may be."""

    def __init__(
        self,
        *names: str,
        num_fit: int,
        num_in_host: int,
        preload_bytes_per_s: int,
        **spec: Any,
    ) -> None:
        self.models = {name: _hosted(name, spec.get("qos", QoS())) for name in names}
        self.inbox: Inbox = SimpleQueue()
        self.events: list[Event] = []
        self.memories = Memories(num_on_device=num_fit, num_in_host=num_in_host)
        self.has_way_to_host = True
        self.may_end = threading.Event()
        self.may_end.set()
        self.loaded: list[ModelSpec] = []
        self.fault: Exception | None = None
        self.now_s = 1000.0
        self._next_id = 0
        self.places = {name: self._place(name, {"min_resident": 0, **spec}) for name in names}
        self.residents = Residents(
            list(self.places.values()),
            make_preloading_policy("foreseen"),
            loader=ModelLoader(self._load, put=self.inbox.put),
            put=self.inbox.put,
            send=self.events.append,
            sizes=TierSizes(
                device_bytes=num_fit * MODEL_BYTES,
                host_bytes=num_in_host * MODEL_BYTES,
                has_way_to_host=lambda spec, num_bytes: self.has_way_to_host,
            ),
            preload_bytes_per_s=preload_bytes_per_s,
        )

    def ask(self, name: str) -> Failed | None:
        """Have a request arrive; return its refusal."""
        self.now_s += 0.01
        self._next_id += 1
        failed = self.residents.admit(name, request_id=self._next_id, now_s=self.now_s)
        if failed is None:
            (request,) = one_token(self._next_id, name).requests
            self.models[name].add(request, now_s=self.now_s)
        return failed

    def look(self, *, is_idle: bool = False, after_s: float = 0.0) -> None:
        self.now_s += after_s
        self.residents.look(self.now_s, is_idle=is_idle)

    def take(self) -> list[Failed]:
        """Wait for what the loader has done, and put it in place."""
        read = self.inbox.get(timeout=5)
        assert isinstance(read, ModelRead)
        failed = self.residents.put_in_place(read, now_s=self.now_s)
        self.look()
        return failed

    def serve(self, name: str) -> None:
        """Answer what waits for a model."""
        model = self.models[name]
        while model.engine.has_work:
            result = model.step(self.now_s, max_step_s=math.inf)
            model.account(result, seconds=0.001, now_s=self.now_s)

    def told(self) -> list[tuple[str, str]]:
        """Return what was decided since the last call."""
        return [(one.model, one.action) for one in self.residents.take_decisions()]

    def ready(self) -> set[str]:
        return self.all_in(Residency.READY)

    def all_in(self, state: Residency) -> set[str]:
        return {name for name, place in self.places.items() if place.state is state}

    def bring(self, name: str) -> None:
        """Have a model loaded by a request, and serve that."""
        self.ask(name)
        self.look()
        self.take()
        self.serve(name)

    def _load(
        self, model: ModelSpec, pace: LoadPace, *, keeps_host_copy: bool
    ) -> tuple[Engine, ModelInfo]:
        self.loaded.append(model)
        if self.fault is not None:
            raise self.fault
        for _ in range(NUM_LAYERS):
            pace.advance(MODEL_BYTES // NUM_LAYERS)
        self.may_end.wait(timeout=5)
        engine = AdaptableEngine(
            model.name,
            self.memories,
            num_bytes=MODEL_BYTES,
            keeps_host_copy=keeps_host_copy,
        )
        engine.adapter_names = [adapter.name for adapter in model.adapters]
        info = ModelInfo(
            name=model.name,
            max_model_len=9,
            vocab_size=9,
            weights_bytes=MODEL_BYTES,
            load_s=0.5,
        )
        return engine, info

    def _place(self, name: str, spec: dict[str, Any]) -> Place:
        model = ModelSpec(name=name, path=f"/at/{name}", task=Task.GENERATE, **spec)
        return Place(
            spec=model,
            model=self.models[name],
            state=Residency.DISK,
            num_bytes=MODEL_BYTES,
            info=absent_info(model),
        )


def _hosted(name: str, qos: QoS) -> HostedModel:
    return HostedModel(AbsentEngine(name), None, ModelMeter(0.0), qos=qos)


@contextmanager
def pool(
    *names: str,
    num_fit: int = 2,
    num_in_host: int = 0,
    preload_bytes_per_s: int = 0,
    **spec: Any,
) -> Iterator[Pool]:
    """`num_fit` and `num_in_host`: models for which the device and the host tier have room."""
    made = Pool(
        *names,
        num_fit=num_fit,
        num_in_host=num_in_host,
        preload_bytes_per_s=preload_bytes_per_s,
        **spec,
    )
    try:
        yield made
    finally:
        made.may_end.set()
        made.residents.close()
