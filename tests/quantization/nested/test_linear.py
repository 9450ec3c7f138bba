"""The layer as a torch module: saved, loaded, copied, compiled, switched."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepseek.core.errors import ConfigurationError, CorruptWeights
from deepseek.core.precision import Precision
from deepseek.quantization.int4.rounding import round_to_nearest
from deepseek.quantization.nested import NestedLinear, PackedNested, pack, pack_residual
from tests.quantization.drawing import draw

pytestmark = pytest.mark.timeout(180)  # the first may build the kernels


def make_layer(*, bias: bool = True, residual: bool = False) -> NestedLinear:
    weight = draw(50, 128)
    weights = pack_residual(weight, round_to_nearest(weight)) if residual else pack(weight)
    return NestedLinear.from_weights(weights, draw(50, seed=1) if bias else None)


def test_precision_is_switched_by_attribute_and_by_call() -> None:
    layer, inputs = make_layer(), draw(2, 3, 128)
    int8 = layer(inputs)
    layer.precision = Precision.INT4
    int4 = layer(inputs)
    assert not torch.equal(int8, int4)
    assert torch.equal(layer(inputs, Precision.INT8), int8)
    rows = torch.tensor([[True, False, True], [False, False, True]])
    assert torch.equal(layer(inputs, rows), torch.where(rows[..., None], int8, int4))


def test_layer_and_engine_class_compute_the_same() -> None:
    layer, inputs = make_layer(), draw(5, 128)
    native = PackedNested(layer.weights(), layer.bias)
    for precision in (Precision.INT8, Precision.INT4):
        assert torch.equal(layer(inputs, precision), native.forward(inputs, precision))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_planes_are_saved_and_loaded(tmp_path: Path, residual: bool, bias: bool) -> None:
    layer, inputs = make_layer(bias=bias, residual=residual), draw(4, 128)
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    planes = load_file(tmp_path / "layer.safetensors")
    names = {"weight_hi", "weight_lo", "weight_scale"}
    names |= {"weight_lo_scale"} if residual else set()
    assert planes.keys() == names | ({"bias"} if bias else set())
    for assign in (False, True):
        other = NestedLinear(128, 50, bias=bias, residual=residual)
        assert not other(inputs).any()
        other.load_state_dict(planes, assign=assign)
        for precision in (Precision.INT8, Precision.INT4):
            assert torch.equal(other(inputs, precision), layer(inputs, precision))


@pytest.mark.parametrize("residual", [False, True])
def test_copies_compute_the_same(residual: bool) -> None:
    layer, inputs = make_layer(residual=residual), draw(4, 128)
    layer.precision = Precision.INT4
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301
        assert other.precision is Precision.INT4
        assert torch.equal(other(inputs), layer(inputs))


def test_a_model_is_cast_without_its_scales() -> None:
    layer, inputs = make_layer(residual=True), draw(4, 128)
    expected = layer(inputs)
    model = torch.nn.Sequential(layer).double().float()
    assert layer.weight_scale.dtype is torch.bfloat16
    assert torch.equal(model(inputs), expected)
    assert model.bfloat16()(inputs.bfloat16()).dtype is torch.bfloat16


def test_compiled_without_a_graph_break_it_computes_the_same() -> None:
    model = torch.nn.Sequential(
        make_layer(), torch.nn.GELU(), NestedLinear.from_float(draw(9, 50 + 14))
    )
    model[1] = torch.nn.ConstantPad1d((0, 14), 0.5)
    inputs, rows = draw(6, 128), torch.arange(6) % 2 == 0
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(inputs), model(inputs))
    torch.testing.assert_close(compiled(inputs[:3]), model(inputs[:3]))
    by_row = torch.compile(model[0], fullgraph=True, backend="aot_eager")
    assert torch.equal(by_row(inputs, rows), model[0](inputs, rows))


def test_the_operator_is_registered_as_torch_wants_it() -> None:
    layer = make_layer()
    arguments = (
        *(draw(3, 128), layer.weight_hi, layer.weight_lo, layer.weight_scale, None),
        *(layer._high_sums, layer._low_sums, layer._padded_bias, 50, True, None),
    )
    torch.library.opcheck(torch.ops.deepseek.nested_linear.default, arguments)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("weight_hi", torch.zeros(4, 16, 16, 4), "weight_hi is torch.float32"),
        ("weight_lo", torch.zeros(4, 16, 16, 4, dtype=torch.int8), "weight_lo is torch.int8"),
        ("weight_scale", torch.ones(4, 2, 16), "weight_scale is torch.float32"),
    ],
)
def test_damaged_planes_are_refused(name: str, value: torch.Tensor, words: str) -> None:
    layer, inputs = make_layer(), draw(2, 128)
    expected = layer(inputs)
    with pytest.raises(CorruptWeights, match=words):
        layer.load_state_dict({**layer.state_dict(), name: value})
    assert torch.equal(layer(inputs), expected)


def test_a_plane_of_another_shape_is_refused() -> None:
    layer = make_layer()
    planes = {**layer.state_dict(), "weight_lo": torch.zeros(3, 16, 16, 4, dtype=torch.uint8)}
    with pytest.raises(RuntimeError, match="weight_lo"):
        layer.load_state_dict(planes)


def test_sizes_that_the_format_cannot_hold_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="does not divide the 100 inputs"):
        NestedLinear(100, 10)
    with pytest.raises(ConfigurationError, match="group size 48"):
        NestedLinear(96, 10, group=48)
    with pytest.raises(ConfigurationError, match="fp16"):
        make_layer()(draw(1, 128), Precision.FP16)
