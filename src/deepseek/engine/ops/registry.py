"""From a device to the operations that run on it, imported on use."""

import torch

from deepseek.engine.ops.base import Ops


def make_ops(device: str) -> Ops:
    """Return the fastest operations for a torch device name."""
    # Imported here: a GPU's worker needs no C++ kernels, a CPU's no Triton.
    if device == "cpu":
        from deepseek.engine.ops.native import cpu_ops  # noqa: PLC0415

        return cpu_ops()
    from deepseek.engine.ops.triton.ops import TritonOps  # noqa: PLC0415

    return TritonOps(torch.device(device))
