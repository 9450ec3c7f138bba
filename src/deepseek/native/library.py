"""Loads the compiled kernels and gives them Python signatures; the C side is `src/abi.h`."""

import ctypes
import logging
from collections.abc import Callable
from functools import cache

import torch

from deepseek.native.build import BuildError, build_library

logger = logging.getLogger(__name__)

TYPES = {torch.float32: 0, torch.bfloat16: 1}
"""Codes of the element types that the kernels take."""

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class Batch(ctypes.Structure):
    """`struct Batch`."""

    _fields_ = (
        ("positions", _POINTER),
        ("kv_rows", _POINTER),
        ("query_starts", _POINTER),
        ("context_lens", _POINTER),
        ("block_tables", _POINTER),
        ("table_stride", _LONG),
        ("num_rows", _LONG),
        ("num_sequences", _LONG),
    )


class PagedKV(ctypes.Structure):
    """`struct PagedKV`."""

    _fields_ = (
        ("keys", _POINTER),
        ("values", _POINTER),
        *((f"key_{name}_stride", _LONG) for name in ("block", "head", "token")),
        *((f"value_{name}_stride", _LONG) for name in ("block", "head", "token")),
        ("block_tokens", _LONG),
        ("num_heads", _LONG),
        ("key_dim", _LONG),
        ("value_dim", _LONG),
        ("type", _LONG),
    )


class Int8Weights(ctypes.Structure):
    """`struct Int8Weights`."""

    _fields_ = (
        ("tiles", _POINTER),
        ("scales", _POINTER),
        ("sums", _POINTER),
        ("bias", _POINTER),
        ("num_outputs", _LONG),
        ("num_inputs", _LONG),
    )


class NestedPlanes(ctypes.Structure):
    """`struct NestedPlanes`."""

    _fields_ = (
        *((name, _POINTER) for name in ("high", "low", "scales", "low_scales")),
        *((name, _POINTER) for name in ("high_sums", "low_sums", "bias")),
        ("num_outputs", _LONG),
        ("num_inputs", _LONG),
        ("group", _LONG),
    )


class Bf16Weights(ctypes.Structure):
    """`struct Bf16Weights`."""

    _fields_ = (
        ("tiles", _POINTER),
        ("bias", _POINTER),
        ("num_outputs", _LONG),
        ("num_inputs", _LONG),
    )


class Kernels:
    """The functions of the library, with their argument types. They let other threads run."""

    def __init__(self, path: str) -> None:
        """Load the library at `path`; raises `OSError` where it cannot be loaded."""
        library = ctypes.CDLL(path)

        def function(name: str, *types: type) -> Callable[..., None]:
            bound = getattr(library, name)
            bound.argtypes, bound.restype = types, None
            return bound

        rows = (_LONG, _LONG)
        self.rms_norm = function(
            *("ds_rms_norm", _POINTER, _LONG, _POINTER, _POINTER),
            *(*rows, _FLOAT, _INT, _INT, _INT),
        )
        self.add_rms_norm = function(
            *("ds_add_rms_norm", _POINTER, _LONG, _POINTER, _LONG, _POINTER, _POINTER),
            *(*rows, _FLOAT, _INT, _INT, _INT),
        )
        self.gated_silu = function("ds_gated_silu", _POINTER, _LONG, _POINTER, *rows, _INT, _INT)
        self.rotate_and_store = function(
            *("ds_rotate_and_store", _POINTER, _LONG, _POINTER, _LONG, _POINTER, _POINTER),
            *(_LONG, _POINTER, _POINTER, _FLOAT, _POINTER, _INT, _INT, _INT),
        )
        self.store = function(
            *("ds_store", _POINTER, _LONG, _LONG, _POINTER, _LONG, _LONG, _POINTER, _POINTER),
            *(_INT, _INT),
        )
        self.attend = function(
            *("ds_attend", _POINTER, _LONG, _LONG, _LONG, _POINTER, _POINTER),
            *(_FLOAT, _POINTER, _INT, _INT),
        )
        self.attend_packed = function(
            *("ds_attend_packed", _POINTER, _LONG, _POINTER, _LONG, _LONG, _LONG),
            *(_POINTER, _INT, _INT),
        )
        self.int8_linear = function(
            "ds_int8_linear", _POINTER, _LONG, _POINTER, _POINTER, _LONG, _INT, _INT
        )
        self.has_int8_linear: bool = bool(library.ds_int8_linear_supported())
        self.nested_linear = function(
            *("ds_nested_linear", _POINTER, _LONG, _POINTER, _POINTER, _LONG, _POINTER, _INT),
            *(_INT, _INT),
        )
        self.bf16_linear = function(
            "ds_bf16_linear", _POINTER, _LONG, _POINTER, _POINTER, _LONG, _INT
        )
        self.has_bf16_linear: bool = bool(library.ds_bf16_linear_supported())


@cache
def load_kernels() -> Kernels | None:
    """Return the kernels, building them on first use; None, and one warning, where they cannot be.

    May take half a minute where nothing was built before.
    """
    try:
        return Kernels(str(build_library()))
    except (BuildError, OSError) as error:
        logger.warning("no native CPU kernels, torch's own operations are used: %s", error)
        return None
