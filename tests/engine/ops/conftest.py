"""Every implementation of `Ops` runs the whole suite; a new one is a line in `IMPLEMENTATIONS`."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from deepseek.engine.ops.base import Ops
from deepseek.engine.ops.native import NativeOps
from deepseek.engine.ops.reference import ReferenceOps
from deepseek.native.build import BuildError, build_library
from deepseek.native.library import Kernels

_BUILD_TIMEOUT_S = 180


@dataclass(frozen=True, slots=True)
class Implementation:
    ops: Ops
    device: torch.device
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)


def _reference() -> Implementation:
    return Implementation(ReferenceOps(), torch.device("cpu"))


def _native() -> Implementation:
    try:
        return Implementation(NativeOps(Kernels(str(build_library()))), torch.device("cpu"))
    except BuildError as error:
        pytest.skip(str(error))


def _triton() -> Implementation:
    pytest.importorskip("triton")
    from deepseek.engine.ops.triton.ops import TritonOps  # noqa: PLC0415 - where there is Triton

    if torch.cuda.is_available():
        device = torch.device("cuda")
        return Implementation(TritonOps(device), device)
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs CUDA, or TRITON_INTERPRET=1")
    # The interpreter multiplies the bits of bfloat16 numbers, as integers.
    device = torch.device("cpu")
    return Implementation(TritonOps(device), device, dtypes=(torch.float32,))


IMPLEMENTATIONS: dict[str, Callable[[], Implementation]] = {
    "reference": _reference,
    "native": _native,
    "triton": _triton,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "implementation" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(_BUILD_TIMEOUT_S))


_PARAMS = [
    pytest.param(name, marks=pytest.mark.gpu) if name == "triton" else name
    for name in IMPLEMENTATIONS
]


@pytest.fixture(scope="session", params=_PARAMS)
def implementation(request: pytest.FixtureRequest) -> Implementation:
    return IMPLEMENTATIONS[request.param]()


@pytest.fixture(scope="session")
def ops(implementation: Implementation) -> Ops:
    return implementation.ops


@pytest.fixture(scope="session")
def device(implementation: Implementation) -> torch.device:
    return implementation.device


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest, implementation: Implementation) -> torch.dtype:
    if request.param not in implementation.dtypes:
        pytest.skip(f"not computed in {request.param}")
    dtype: torch.dtype = request.param
    return dtype
