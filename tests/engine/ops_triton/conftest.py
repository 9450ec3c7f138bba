"""Kernels run on a GPU, or in Triton's interpreter (TRITON_INTERPRET=1) where there is none."""

import os
from importlib.util import find_spec
from typing import Any

import pytest
import torch

HAS_TRITON = find_spec("triton") is not None
collect_ignore_glob = [] if HAS_TRITON else ["test_*.py"]
INTERPRETED = not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") == "1"
HALF = torch.float16 if INTERPRETED else torch.bfloat16
"""The interpreter multiplies the bits of bfloat16 numbers, as integers."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip where no kernel can run."""
    if torch.cuda.is_available() or INTERPRETED:
        return
    skip = pytest.mark.skip(reason="needs CUDA, or TRITON_INTERPRET=1")
    for item in items:
        if "ops_triton" in item.path.parts:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(scope="session")
def ops(device: torch.device) -> Any:
    from deepseek.engine.ops.triton.ops import TritonOps  # noqa: PLC0415 - where there is Triton

    return TritonOps(device)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference over the norm of what is expected."""
    difference = actual.cpu().double() - expected.cpu().double()
    return float(difference.norm() / expected.cpu().double().norm())
