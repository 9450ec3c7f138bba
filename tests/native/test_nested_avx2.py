"""The nested kernel as a processor without AVX-512 gets it, compiled apart."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch

from deepseek.core.precision import Precision
from deepseek.native import build
from deepseek.native.library import load_kernels
from deepseek.quantization.int4.rounding import round_to_nearest
from deepseek.quantization.nested import PackedNested, pack, pack_residual
from tests.quantization.drawing import draw

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def avx2(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if load_kernels() is None:
        pytest.skip("needs AVX2 and a compiler")
    library = tmp_path_factory.mktemp("avx2") / "nested.so"
    sources = Path(build.__file__).parent / "src"
    flags = [flag for flag in build._FLAGS if not flag.startswith("-march")]
    command = [build._compiler(), *flags, "-march=x86-64-v3", str(sources / "nested_linear.cpp")]
    openmp = str(build._loaded_openmp())
    subprocess.run([*command, "-shared", "-o", str(library), openmp], check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("out", [1, 37, 96])
def test_both_kernels_agree_to_the_last_bit(
    avx2: ctypes.CDLL, out: int, group: int, residual: bool
) -> None:
    weight = draw(out, 384)
    int4 = round_to_nearest(weight, group=group)
    weights = pack_residual(weight, int4) if residual else pack(weight, group=group)
    layer = PackedNested(weights, draw(out, seed=1))
    kernels = load_kernels()
    assert kernels is not None
    function = avx2.ds_nested_linear
    function.argtypes, function.restype = kernels.nested_linear.argtypes, None  # type: ignore[attr-defined]
    for rows in (1, 3, 4, 5, 9, 30):
        inputs = draw(rows, 384, seed=rows)
        for precision in (Precision.INT8, Precision.INT4, torch.arange(rows) % 3 == 0):
            expected = layer.forward(inputs, precision)
            found = torch.empty_like(expected)
            by_row = precision if isinstance(precision, torch.Tensor) else None
            function(
                *(inputs.data_ptr(), inputs.stride(0), layer._address, found.data_ptr(), rows),
                *(None if by_row is None else by_row.data_ptr(), precision is Precision.INT8),
                *(0, 1),
            )
            assert torch.equal(found, expected)
