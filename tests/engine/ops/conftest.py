"""Every implementation of `Ops` runs the whole suite; a new one is a line in `IMPLEMENTATIONS`."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from deepseek.engine.native.build import BuildError, build_library
from deepseek.engine.native.library import Kernels
from deepseek.engine.ops.base import Ops
from deepseek.engine.ops.native import NativeOps
from deepseek.engine.ops.reference import ReferenceOps

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


IMPLEMENTATIONS: dict[str, Callable[[], Implementation]] = {
    "reference": _reference,
    "native": _native,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "implementation" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(_BUILD_TIMEOUT_S))


@pytest.fixture(scope="session", params=IMPLEMENTATIONS)
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
