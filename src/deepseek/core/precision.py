"""The number formats that a layer's weights, and a request, may ask for."""

from enum import StrEnum


class Precision(StrEnum):
    """Coarsest first, so that the order of the members is the order of quality."""

    INT4 = "int4"
    INT8 = "int8"
    FP16 = "fp16"
    """Sixteen bits: float16 or bfloat16, whichever the device computes with; bfloat16 on CPUs."""


_QUALITY = list(Precision)


def finer(one: Precision, other: Precision) -> Precision:
    """Return the one of higher quality."""
    return max(one, other, key=_QUALITY.index)


def coarser(one: Precision, other: Precision) -> Precision:
    """Return the one of lower quality."""
    return min(one, other, key=_QUALITY.index)
