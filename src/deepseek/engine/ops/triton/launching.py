"""How kernels follow one another on the device.

A decode step is some 300 kernels of a few microseconds, so the gaps between them count. With
programmatic dependent launch (Hopper and later) a kernel is set up while the one before it still
runs: 0.2 of 6.2 ms in a step of Llama-8B's shape. The rule that keeps this right: *every* kernel
calls `wait_for_inputs` before it first reads or writes memory that another kernel of the step
touches. Then a kernel that has passed its wait knows that all earlier ones have ended.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# Triton types a kernel's arguments where it is launched.

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_HOPPER = 9
_LARGE_TILES_BYTES = 160_000
"""Shared memory of a program that our deepest pipelines need."""


@triton.jit
def wait_for_inputs(OVERLAP: tl.constexpr):
    """Let the next kernel be set up, and wait until those before this one have ended."""
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()


class Launch:
    """Keyword arguments that every kernel launch on one device takes."""

    def __init__(self, device: torch.device) -> None:
        """Ask the device what it can do; without a GPU kernels run in Triton's interpreter."""
        self.num_processors = 1
        self.is_hopper = False
        # The interpreter has everything.
        self.has_copy_engine = self.has_large_tiles = device.type == "cpu"
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            self.num_processors = properties.multi_processor_count
            self.is_hopper = self.has_copy_engine = properties.major >= _HOPPER
            self.has_large_tiles = properties.shared_memory_per_block_optin >= _LARGE_TILES_BYTES

    @property
    def options(self) -> dict[str, Any]:
        """Return `OVERLAP` for the kernel and what makes the launch honour it."""
        if not self.is_hopper:
            return {"OVERLAP": False}
        return {"OVERLAP": True, "launch_pdl": True}
