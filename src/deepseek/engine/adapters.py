"""LoRA adapters of one decoder: read, put into its projections, taken out when nobody uses them.

Reading touches no state and may happen in any thread; everything else belongs to the step loop's,
between two steps, so that a step sees one set of adapters from its first layer to its last.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from deepseek.core.errors import AdapterNotFound, AdapterRejected, DeepseekError
from deepseek.core.wire import AdapterInfo, AdapterSpec
from deepseek.engine.base import AdapterHost
from deepseek.engine.models.projection import (
    AdapterStack,
    AdapterWeights,
    Projection,
    stack_adapters,
)
from deepseek.weights.adapter_directory import AdapterDirectory, LoraLayer, open_adapter_directory

logger = logging.getLogger(__name__)

_SHOWN_NAMES = 3
"""How many of many unknown layers a message names."""

AdapterMatrices = Mapping[Projection, AdapterWeights]
"""What `AdapterSet.read` returns: one adapter's part in each projection it changes."""


@dataclass(slots=True, eq=False, kw_only=True)
class LoadedAdapter:
    """One load of one adapter; loading the name again makes another."""

    name: str
    index: int
    """What `RowChoices.adapters` has in the rows of this adapter."""
    salt: bytes
    """Goes into the prefix cache's hashes: attention state of two loads is never the same."""
    projections: tuple[Projection, ...] = field(repr=False)
    num_users: int = 0
    is_dropped: bool = False


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a layer of the base model is: its columns of a (fused) projection."""

    projection: Projection
    start: int
    width: int


class AdapterSet:
    """The adapters that are loaded for one decoder.

    A dropped adapter takes no new request at once; its weights stay until the last request that
    acquired it has released it, and count against `max_adapters` until then.
    """

    def __init__(
        self,
        projections: Sequence[Projection],
        *,
        dtype: torch.dtype,
        device: str,
        max_adapters: int,
        max_rank: int,
    ) -> None:
        """Serve `projections`, whose inputs are of `dtype`, on `device`."""
        self._dtype = dtype
        self._device = device
        self._max_adapters = max_adapters
        self._max_rank = max_rank
        self._places = {
            name: place for projection in projections for name, place in _places(projection)
        }
        self._by_name: dict[str, LoadedAdapter] = {}
        self._resident: dict[int, LoadedAdapter] = {}
        self._num_loads = 0
        self.version = 0
        """Changes with the projections' weights: a captured graph holds for one version only."""

    @property
    def names(self) -> list[str]:
        """The adapters that take requests."""
        return list(self._by_name)

    def read(self, path: Path) -> AdapterMatrices:
        """Return a PEFT directory's matrices on the host, ready for `load`; for any thread.

        Raises `AdapterRejected` where they cannot be read or do not fit the model.
        """
        directory = open_adapter_directory(path)
        self._check_fits(directory)
        by_projection: dict[Projection, list[tuple[_Place, LoraLayer]]] = {}
        for layer in directory.layers:
            place = self._place(layer.name)
            by_projection.setdefault(place.projection, []).append((place, layer))
        try:
            with safe_open(directory.weights_file, framework="pt") as file:
                return {
                    projection: self._weights(projection, parts, file, path)
                    for projection, parts in by_projection.items()
                }
        except (OSError, SafetensorError) as error:
            raise AdapterRejected(f"{directory.weights_file} cannot be read: {error}") from error

    def load(self, name: str, matrices: AdapterMatrices) -> LoadedAdapter:
        """Put an adapter in place; one of the same name is dropped.

        Raises `AdapterRejected` where there is no room; nothing has changed then.
        """
        old = self._by_name.get(name)
        gone = old if old is not None and old.num_users == 0 else None
        adapter = LoadedAdapter(
            name=name,
            index=self._free_index(gone),
            salt=f"{name}\0{self._num_loads}".encode(),
            projections=tuple(matrices),
        )
        self._install(adapter, matrices, gone)
        self._num_loads += 1
        if old is not None:
            old.is_dropped = True
        if gone is not None:
            del self._resident[gone.index]
        self._by_name[name] = self._resident[adapter.index] = adapter
        return adapter

    def drop(self, name: str) -> None:
        """Take no more requests for an adapter; raises `AdapterNotFound`."""
        adapter = self.find(name)
        del self._by_name[name]
        adapter.is_dropped = True
        self._remove_if_unused(adapter)

    def find(self, name: str) -> LoadedAdapter:
        """Return the adapter that requests for `name` get; raises `AdapterNotFound`."""
        adapter = self._by_name.get(name)
        if adapter is None:
            loaded = ", ".join(self._by_name) or "none"
            raise AdapterNotFound(f"adapter {name!r} is not loaded; loaded: {loaded}")
        return adapter

    def acquire(self, name: str) -> LoadedAdapter:
        """Return the adapter and keep it until it is released; raises `AdapterNotFound`."""
        adapter = self.find(name)
        adapter.num_users += 1
        return adapter

    def release(self, adapter: LoadedAdapter) -> None:
        """Give back what `acquire` returned, once."""
        adapter.num_users -= 1
        self._remove_if_unused(adapter)

    # read

    def _check_fits(self, directory: AdapterDirectory) -> None:
        path = directory.path
        unknown = [
            layer.name for layer in directory.layers if self._place_or_none(layer.name) is None
        ]
        if unknown:
            shown = ", ".join(unknown[:_SHOWN_NAMES])
            more = f" and {len(unknown) - _SHOWN_NAMES} more" if unknown[_SHOWN_NAMES:] else ""
            kinds = ", ".join(sorted({name.rpartition(".")[2] for name in self._places}))
            raise AdapterRejected(
                f"{path} adapts layers that the model does not have, or not as adaptable ones: "
                f"{shown}{more}; adaptable in each of the model's layers: {kinds}"
            )
        if directory.max_rank > self._max_rank:
            raise AdapterRejected(
                f"{path} has rank {directory.max_rank}; max_adapter_rank is {self._max_rank}"
            )
        for layer in directory.layers:
            place = self._place(layer.name)
            own, adapted = (
                (place.projection.in_features, place.width),
                (layer.in_features, layer.out_features),
            )
            if own != adapted:
                raise AdapterRejected(
                    f"{path} was made for another base model: it adapts {layer.name!r} from "
                    f"{adapted[0]} to {adapted[1]} features, the model has {own[0]} to {own[1]}"
                )

    def _place(self, name: str) -> _Place:
        place = self._place_or_none(name)
        if place is None:
            raise AdapterRejected(f"the model has no adaptable layer {name!r}")
        return place

    def _place_or_none(self, name: str) -> _Place | None:
        """Find a layer, also in a checkpoint of the bare model, which has no outermost prefix."""
        return self._places.get(name) or self._places.get(name.partition(".")[2])

    def _weights(
        self,
        projection: Projection,
        parts: list[tuple[_Place, LoraLayer]],
        file: safe_open,
        path: Path,
    ) -> AdapterWeights:
        """Return the parts' downs one after another, and their ups on the block diagonal."""
        rank = sum(layer.rank for _, layer in parts)
        down = torch.zeros(rank, projection.in_features)
        up = torch.zeros(sum(projection.out_features), rank)
        first = 0
        for place, layer in parts:
            ranks = slice(first, first + layer.rank)
            down[ranks] = file.get_tensor(layer.down)
            columns = slice(place.start, place.start + place.width)
            up[columns, ranks] = file.get_tensor(layer.up).float() * layer.scale
            first += layer.rank
        weights = AdapterWeights(down=down.to(self._dtype), up=up.to(self._dtype))
        # An infinity times the zero of a row that has another adapter would be NaN in that row.
        if not (weights.down.isfinite().all() and weights.up.isfinite().all()):
            raise AdapterRejected(
                f"{path} has infinite or undefined numbers, or some too large for {self._dtype}, "
                f"in {', '.join(layer.name for _, layer in parts)}"
            )
        return weights

    # load and drop

    def _free_index(self, gone: LoadedAdapter | None) -> int:
        """Return the lowest index that nobody has; `gone` makes room, but has its index still."""
        if len(self._resident) - (gone is not None) >= self._max_adapters:
            leaving = sum(adapter.is_dropped for adapter in self._resident.values())
            waiting = f" ({leaving} dropped ones still answer requests)" if leaving else ""
            raise AdapterRejected(
                f"{len(self._resident)} adapters are loaded{waiting}, max_adapters is "
                f"{self._max_adapters}; drop one first"
            )
        return next(
            index for index in range(1, self._max_adapters + 2) if index not in self._resident
        )

    def _install(
        self, adapter: LoadedAdapter, matrices: AdapterMatrices, gone: LoadedAdapter | None
    ) -> None:
        """Build every projection's new stack, then put all of them in place."""
        touched = dict.fromkeys((*matrices, *(gone.projections if gone else ())))
        stacks: list[tuple[Projection, AdapterStack | None]] = []
        try:
            for projection in touched:
                parts = _parts(projection, without=gone)
                if projection in matrices:
                    parts[adapter.index] = self._on_device(matrices[projection])
                stacks.append((projection, stack_adapters(parts)))
        except torch.OutOfMemoryError:
            raise AdapterRejected(
                "the device's memory has no room for the adapter; drop another first"
            ) from None
        for projection, stack in stacks:
            projection.adapters = stack
        self.version += 1

    def _remove_if_unused(self, adapter: LoadedAdapter) -> None:
        if not adapter.is_dropped or adapter.num_users > 0:
            return
        del self._resident[adapter.index]
        # One projection at a time: taking weights out must not need room for all of them twice.
        for projection in adapter.projections:
            projection.adapters = stack_adapters(_parts(projection, without=adapter))
        self.version += 1

    def _on_device(self, weights: AdapterWeights) -> AdapterWeights:
        return AdapterWeights(down=weights.down.to(self._device), up=weights.up.to(self._device))


def load_listed(host: AdapterHost, adapters: Iterable[AdapterSpec]) -> list[AdapterInfo]:
    """Load the adapters that come with a model; one that cannot be is reported, the rest serve."""
    infos: list[AdapterInfo] = []
    for adapter in adapters:
        error = None
        try:
            host.prepare_adapter(adapter.name, Path(adapter.path))()
        except DeepseekError as refused:
            logger.error("adapter %s cannot be loaded: %s", adapter.name, refused)
            error = refused.message
        infos.append(AdapterInfo(name=adapter.name, error=error))
    return infos


def _places(projection: Projection) -> Iterable[tuple[str, _Place]]:
    start = 0
    for name, width in zip(projection.names, projection.out_features, strict=True):
        yield name, _Place(projection, start, width)
        start += width


def _parts(projection: Projection, *, without: LoadedAdapter | None) -> dict[int, AdapterWeights]:
    parts = dict(projection.adapters.parts) if projection.adapters else {}
    if without is not None:
        parts.pop(without.index, None)
    return parts
