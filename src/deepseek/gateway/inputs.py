"""Prompts and inputs: one or several, as text or as token ids."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from deepseek.core.errors import InvalidRequest

T = TypeVar("T")

_OFFLOAD_BYTES = 64 * 1024
"""Tokenising this much text takes some 20 ms; more would stall every stream of the process."""


def split_inputs(
    value: str | Sequence[str | int | list[int]], *, param: str, max_inputs: int
) -> list[str | list[int]]:
    """Return the inputs one by one; raises `InvalidRequest` for mixtures and for too many."""
    if isinstance(value, str):
        return [value]
    kinds = {type(item) for item in value}
    if kinds == {int}:
        return [[item for item in value if isinstance(item, int)]]
    if len(kinds) > 1:
        raise InvalidRequest(
            f"{param}: mixes texts and token ids; send strings, token ids, or lists of token ids",
            param=param,
        )
    if len(value) > max_inputs:
        raise InvalidRequest(
            f"{param}: {len(value)} inputs; send at most {max_inputs} (gateway.max_batch_inputs)",
            param=param,
        )
    return [item for item in value if not isinstance(item, int)]


async def offload(num_bytes: int, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run `work` here when it is small, else in a thread, so that running streams keep their pace.

    The tokenizers release Python's lock.
    """
    if num_bytes <= _OFFLOAD_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)
