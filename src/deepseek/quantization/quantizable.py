"""Gives a transformers model the method `apply_quantization`, by a subclass of its class.

A method bound to the instance would not survive pickling or copying; a subclass does, once it says
how to be found again: by the class it was made from, which can be imported.
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from deepseek.quantization.config import MixedPrecisionConfig
from deepseek.weights.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from deepseek.core.precision import Precision
    from deepseek.quantization.calibration import Data
    from deepseek.quantization.report import QuantizationReport


class Quantizable(nn.Module):
    """What our loader adds to a model's class."""

    def apply_quantization(
        self,
        config: MixedPrecisionConfig,
        *,
        data: "Data" = None,
        tokenizer: Any = None,
        analyse: bool = False,
        state_file: Path | None = None,
        progress: Progress | None = None,
    ) -> "QuantizationReport":
        """Quantize this model in place; see `deepseek.quantization.apply_quantization`."""
        # Deferred: this class is made for models that are only run, too.
        from deepseek.quantization.application import apply_quantization  # noqa: PLC0415

        return apply_quantization(
            self,
            config,
            data=data,
            tokenizer=tokenizer,
            analyse=analyse,
            state_file=state_file,
            progress=progress,
        )

    def set_precision(self, precision: "Precision | str | None") -> None:
        """Let every layer compute in at most this precision, until it is set again."""
        from deepseek.quantization.switching import set_precision  # noqa: PLC0415 - as above

        set_precision(self, precision)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Name the class that can be imported; copying and pickling make ours from it again."""
        _, (_, *arguments), *rest = super().__reduce_ex__(protocol)
        return (_instance, (_importable(type(self)), *arguments), *rest)


def make_quantizable(model: "PreTrainedModel") -> "PreTrainedModel":
    """Give this model the method; a model that has it stays as it is."""
    if not isinstance(model, Quantizable):
        base: Any = type(model)
        model.__class__ = quantizable_class(base)
    return model


@cache
def quantizable_class(base: type) -> type:
    """Return the subclass of a model's class; it goes by the same name, which is saved with it."""
    members = {"__module__": base.__module__, "__qualname__": base.__qualname__}
    return type(base.__name__, (Quantizable, base), members)


def _importable(cls: type) -> type:
    bases = cls.__bases__
    return bases[1] if bases[0] is Quantizable else cls


def _instance(base: Any, *arguments: Any) -> Any:
    cls = quantizable_class(base)
    return cls.__new__(cls, *arguments)
