"""How kernels are launched and follow one another on the device.

A decode step is some 300 kernels of a few microseconds, so the gaps between them count. With
programmatic dependent launch (Hopper and later) a kernel is set up while the one before it still
runs: 0.2 of 6.2 ms in a step of Llama-8B's shape. The rule that keeps this right: *every* kernel
calls `wait_for_inputs` before it first reads or writes memory that another kernel of the step
touches. Then a kernel that has passed its wait knows that all earlier ones have ended.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# Triton types a kernel's arguments where it is launched.

from typing import Any, TypeAlias

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

_HOPPER = 9
_LARGE_TILES_BYTES = 160_000
"""Shared memory of a program that our deepest pipelines need."""

Grid = tuple[int, int, int]
Argument: TypeAlias = torch.Tensor | TensorDescriptor | float | None


@triton.jit
def wait_for_inputs(OVERLAP: tl.constexpr):
    """Let the next kernel be set up, and wait until those before this one have ended."""
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()


def ceil_div(value: int, divisor: int) -> int:
    """Round a quotient up; Triton's own function takes ten times as long on the host."""
    return -(-value // divisor)


def power_of_two(value: int) -> int:
    """Return the smallest power of two that is not below `value`."""
    return 1 << (value - 1).bit_length()


class Launch:
    """Launches kernels on one device.

    Triton's own way from a call to what it has compiled costs more than most kernels run, and a
    prompt's step, which no graph holds, makes 200 such calls. Here the way is a look-up by what a
    kernel is compiled for: types, alignment and constants.
    """

    def __init__(self, device: torch.device) -> None:
        """Ask the device what it can do; without a GPU kernels run in Triton's interpreter."""
        self.num_processors = 1
        self.is_hopper = False
        self.has_large_tiles = device.type == "cpu"  # the interpreter has everything
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            self.num_processors = properties.multi_processor_count
            self.is_hopper = properties.major >= _HOPPER
            self.has_large_tiles = properties.shared_memory_per_block_optin >= _LARGE_TILES_BYTES
        self._is_interpreted = device.type == "cpu"
        self._compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}

    def __call__(self, kernel: Any, grid: Grid, *args: Argument, **constants: Any) -> None:
        """Launch `kernel` with its run-time arguments in order, then its constants and options.

        OVERLAP, which every kernel has, is added here.
        """
        if self._is_interpreted:
            kernel[grid](*args, **constants, OVERLAP=False)
            return
        key = (kernel, *constants.values(), *map(_kind, args))
        found = self._compiled.get(key)
        if found is not None:
            compiled, values = found
            compiled[grid](*args, *values)
            return
        constants["OVERLAP"] = self.is_hopper
        options = {"launch_pdl": True} if self.is_hopper else {}
        compiled = kernel[grid](*args, **constants, **options)
        values = tuple(constants[name] for name in kernel.arg_names[len(args) :])
        self._compiled[key] = compiled, values


def _kind(arg: Argument) -> object:
    """Return what Triton may compile a kernel for: the type, alignment, divisibility, and 1."""
    if isinstance(arg, torch.Tensor):
        return arg.dtype, arg.data_ptr() & 15 == 0
    if isinstance(arg, TensorDescriptor):
        return TensorDescriptor, arg.base.dtype, *arg.block_shape
    if isinstance(arg, int):
        return arg == 1, arg & 15 == 0, arg >> 31
    return type(arg)
