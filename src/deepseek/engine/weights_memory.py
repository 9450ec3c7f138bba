"""What a model holds, and how much memory its weights take, as they are kept for computing."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch

_PLAIN = frozenset({bool, bytes, complex, float, int, str, type(None)})
_CONTAINERS = frozenset({dict, frozenset, list, OrderedDict, set, tuple})
_OWN_MODULES = ("deepseek.", "transformers.")


def weights_bytes(*models: object) -> int:
    """Return the bytes of every tensor that these objects hold, each memory counted once.

    Not what was read: layers are packed, quantised and padded, and a tied head has a copy of its
    own beside the embedding.
    """
    sizes: dict[int, int] = {}
    for value in held_by(*models):
        if isinstance(value, torch.Tensor):
            place, size = _memory_of(value)
            sizes[place] = max(size, sizes.get(place, 0))
        else:
            sizes[id(value)] = getattr(value, "packed_bytes", 0)
    return sum(sizes.values())


def held_by(*models: object) -> Iterator[object]:
    """Yield once all that can be reached through a model's fields and containers, in their order.

    Tensors, and what holds them; nothing of what only refers to a model or to the world.
    """
    seen: set[int] = set()
    pending: list[object] = list(reversed(models))
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if not isinstance(value, torch.Tensor):
            pending.extend(reversed([part for part in _parts(value) if _may_hold(part)]))


def _may_hold(value: object) -> bool:
    """Rule out what most fields hold: numbers, names, and a module's many empty containers."""
    cls = type(value)
    return cls not in _PLAIN and (cls not in _CONTAINERS or bool(value))


def _memory_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Return what tells a tensor's memory apart, and its size."""
    if tensor.is_mkldnn:  # opaque: it has no address that could be asked for
        return id(tensor), tensor.numel() * tensor.itemsize
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _parts(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    is_own = type(value).__module__.startswith(_OWN_MODULES)
    if is_own or isinstance(value, torch.nn.Module):
        return _fields(value)
    return ()


def _fields(value: object) -> Iterator[Any]:
    yield from getattr(value, "__dict__", {}).values()
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                yield getattr(value, name)
