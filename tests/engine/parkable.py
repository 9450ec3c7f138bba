"""An engine that can leave its device, and a device that has room for so many."""

import torch

from deepseek.engine.base import BeforePiece, Output
from deepseek.scheduling.batching.base import StepPlan
from tests.engine.one_token import OneTokenEngine

PIECE_BYTES = 10**7


class Memories:
    """Who takes memory of a device and of the host beside it; models are all of one size."""

    def __init__(self, *, num_on_device: int, num_in_host: int) -> None:
        self.num_on_device = num_on_device
        self.num_in_host = num_in_host
        self.on_device: set[str] = set()
        self.in_host: set[str] = set()

    def take_device(self, name: str) -> None:
        if len(self.on_device | {name}) > self.num_on_device:
            raise torch.OutOfMemoryError(f"{name} beside {self.on_device}")
        self.on_device.add(name)

    def take_host(self, name: str) -> None:
        self.in_host.add(name)
        assert len(self.in_host) <= self.num_in_host, f"more than the host tier: {self.in_host}"


class ParkableEngine(OneTokenEngine):
    """Implements `deepseek.engine.base.Parkable`; answers every request with one token."""

    def __init__(
        self, name: str, memories: Memories, *, num_bytes: int, keeps_host_copy: bool
    ) -> None:
        super().__init__()
        self.name = name
        self.can_park = keeps_host_copy
        self._memories = memories
        self._num_bytes = num_bytes
        memories.take_device(name)
        if keeps_host_copy:
            memories.take_host(name)

    def settle(self) -> None:
        """A step is done when it returns."""

    def step(self, plan: StepPlan | None = None) -> list[Output]:
        if self.name not in self._memories.on_device:
            raise RuntimeError(f"{self.name} is not on the device")
        return super().step(plan)

    def park(self) -> None:
        if self.has_work or not self.can_park:
            raise RuntimeError(f"{self.name} cannot leave")
        self._memories.on_device.remove(self.name)

    def wake(self, before_piece: BeforePiece) -> None:
        if self.name not in self._memories.in_host:
            raise RuntimeError(f"{self.name} has no copy to come back from")
        self._memories.take_device(self.name)
        try:
            for _ in range(0, self._num_bytes, PIECE_BYTES):
                before_piece(PIECE_BYTES)
        except BaseException:
            self._memories.on_device.remove(self.name)
            raise

    def drop_host_copy(self) -> None:
        self.can_park = False
        self._memories.in_host.remove(self.name)

    def close(self) -> None:
        super().close()
        self._memories.on_device.discard(self.name)
        self._memories.in_host.discard(self.name)


class AdaptableEngine(ParkableEngine):
    """The same, with LoRA adapters by name."""

    adapter_names: list[str]

    def prepare_adapter(self, name: str, path: object) -> object:
        return lambda: self.adapter_names.append(name)

    def drop_adapter(self, name: str) -> None:
        self.adapter_names.remove(name)
