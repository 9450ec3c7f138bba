"""What lies between a checkpoint's files and what a model computes with.

Whatever a model's code asks of its checkpoint goes through here by name, with the way to find the
answer: another answer to the same question, kept from an earlier load, spares reading the files.
"""

from collections.abc import Callable
from typing import Protocol

import torch

from deepseek.engine.linear import LinearFactory

LinearWeights = tuple[torch.Tensor, torch.Tensor | None]
"""Weight (out, in), and bias."""


class Preparation(Protocol):
    """Answers what a checkpoint is asked; names are unique in a model."""

    def has(self, name: str, look: Callable[[], bool]) -> bool:
        """Say whether the checkpoint has a tensor, which `look` finds out."""
        ...

    def tensor(self, name: str, read: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return a tensor in the model's number format, as `read` does.

        It may be memory that others see too: never write to it.
        """
        ...

    def layer(
        self, name: str, read: Callable[[], LinearWeights], make: LinearFactory
    ) -> torch.nn.Module:
        """Return the layer that `make` makes of what `read` reads."""
        ...


class ReadAnew:
    """A preparation that keeps nothing: everything is read, and made, when it is asked for."""

    def has(self, name: str, look: Callable[[], bool]) -> bool:
        return look()

    def tensor(self, name: str, read: Callable[[], torch.Tensor]) -> torch.Tensor:
        return read()

    def layer(
        self, name: str, read: Callable[[], LinearWeights], make: LinearFactory
    ) -> torch.nn.Module:
        return make(*read())
