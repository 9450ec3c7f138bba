"""Kernels run on a GPU, or in Triton's interpreter (TRITON_INTERPRET=1) where there is none."""

import os

import pytest
import torch

pytest.importorskip("triton")

from deepseek.engine.ops.triton.ops import TritonOps

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


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
    return torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")


@pytest.fixture(scope="session")
def ops(device: torch.device) -> TritonOps:
    return TritonOps(device)
