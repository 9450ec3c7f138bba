"""Sensitivity and promotion: on a board of numbers, and on a model with known sensitive layers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from deepseek import load_model
from deepseek.core.errors import ConfigurationError
from deepseek.core.precision import Precision
from deepseek.quantization import MixedPrecisionConfig
from deepseek.quantization.application import apply_quantization
from deepseek.quantization.calibration import prepare, read_texts
from deepseek.quantization.editing import editing
from deepseek.quantization.fidelity import Fidelity, Yardstick
from deepseek.quantization.measurements import Measurements
from deepseek.quantization.search import BITS, Search, Unit, promotion_order
from deepseek.weights.progress import SilentProgress

ALL_INT4 = {"attention_layers": "int4", "ffn_layers": "int4"}


class AdditiveBoard:
    """A model whose units' divergences add up: int8 costs a hundredth of int4."""

    def __init__(self, costs: dict[str, float]) -> None:
        self.costs = costs
        self.precisions = dict.fromkeys(costs, Precision.FP16)
        self.num_measured = 0

    def set(self, layers: Sequence[str], precision: Precision) -> None:
        self.precisions.update(dict.fromkeys(layers, precision))

    def divergence(self) -> Fidelity:
        self.num_measured += 1
        parts = {Precision.INT4: 1.0, Precision.INT8: 0.01, Precision.FP16: 0.0}
        lost = sum(self.costs[name] * parts[at] for name, at in self.precisions.items())
        kept = 1 / (1 + lost)
        return Fidelity(accuracy=kept, relative_accuracy=kept, divergence=lost, agreement=kept)

    held_out = divergence


class Killed(Exception):
    """Stands for the end of the process."""


def units(costs: dict[str, float]) -> list[Unit]:
    return [
        Unit(name=name, layers=(name,), start=Precision.INT4, num_weights=100) for name in costs
    ]


def run(board: AdditiveBoard, *, threshold: float, file: Path | None = None) -> Any:
    known = Measurements(file, fingerprint="a model")
    search = Search(board, units(board.costs), measurements=known, progress=SilentProgress())
    return search.run(threshold=threshold, analyse=False)


costs = st.dictionaries(
    st.sampled_from("abcdefgh"), st.floats(min_value=1e-4, max_value=10), min_size=1
)


@given(costs=costs, threshold=st.floats(min_value=0.05, max_value=1.0))
def test_the_fewest_promotions_meet_the_threshold(
    costs: dict[str, float], threshold: float
) -> None:
    board = AdditiveBoard(costs)
    outcome = run(board, threshold=threshold)
    assert outcome.point is not None
    assert board.held_out().relative_accuracy >= threshold, "the board is left as it was found"
    for promotion in reversed(outcome.order[: outcome.point.num_promotions]):
        below = Precision.INT4 if promotion.to is Precision.INT8 else Precision.INT8
        board.set(promotion.unit.layers, below)
        assert board.held_out().relative_accuracy < threshold, "one promotion fewer is too few"
        break


@given(costs=costs)
def test_a_units_own_promotions_stay_in_order(costs: dict[str, float]) -> None:
    board = AdditiveBoard(costs)
    outcome = run(board, threshold=1.0)
    assert len(outcome.order) == 2 * len(costs)
    for name in costs:
        assert [p.to for p in outcome.order if p.unit.name == name] == ["int8", "fp16"]


def test_what_helps_most_per_bit_comes_first() -> None:
    large = Unit(name="large", layers=("l",), start=Precision.INT8, num_weights=1000)
    small = Unit(name="small", layers=("s",), start=Precision.INT8, num_weights=10)
    order = promotion_order(
        [large, small], {"large": {Precision.INT8: 0.5}, "small": {Precision.INT8: 0.1}}
    )
    assert [promotion.unit.name for promotion in order] == ["small", "large"]
    assert order[1].cost_bits == 8000


def test_an_impossible_threshold_has_no_point() -> None:
    class NeverGood(AdditiveBoard):
        def held_out(self) -> Fidelity:
            return Fidelity(accuracy=0.5, relative_accuracy=0.5, divergence=1.0, agreement=0.5)

    outcome = run(NeverGood({"a": 1.0, "b": 2.0}), threshold=0.9)
    assert outcome.point is None
    assert outcome.front[-1].num_promotions == 4


def test_a_killed_search_goes_on_where_it_ended(tmp_path: Path) -> None:
    file = tmp_path / "deeper" / "search.json"
    costs = {name: 1.0 + number for number, name in enumerate("abcdef")}

    class DyingBoard(AdditiveBoard):
        def divergence(self) -> Fidelity:
            if self.num_measured == 7:
                raise Killed
            return super().divergence()

    with pytest.raises(Killed):
        run(DyingBoard(costs), threshold=0.9, file=file)
    undisturbed, resumed = AdditiveBoard(costs), AdditiveBoard(costs)
    expected = run(undisturbed, threshold=0.9)
    found = run(resumed, threshold=0.9, file=file)
    assert found.order == expected.order
    assert found.point == expected.point
    assert resumed.precisions == undisturbed.precisions
    assert resumed.num_measured == undisturbed.num_measured - 7


def test_the_state_of_another_model_is_not_believed(tmp_path: Path) -> None:
    file = tmp_path / "search.json"
    board = AdditiveBoard({"a": 1.0})
    run(board, threshold=0.9, file=file)
    other = Measurements(file, fingerprint="another model")
    seen = other.get("held out: a=int4", board.held_out)
    assert seen.relative_accuracy == board.held_out().relative_accuracy


def test_a_file_that_is_no_state_is_named(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("shopping list")
    with pytest.raises(ConfigurationError, match=r"notes\.txt is not the state"):
        Measurements(file)


@pytest.fixture
def uneven_model(tiny_llama_dir: Path) -> Any:
    """A model whose first block's feed-forward weights carry outliers, which int4 cannot hold."""
    model = load_model(tiny_llama_dir)
    with torch.no_grad():
        for projection in (model.model.layers[0].mlp.gate_proj, model.model.layers[0].mlp.up_proj):
            projection.weight[:, ::64] *= 12
    return model


def test_promotion_meets_the_threshold_on_data_that_the_search_has_not_seen(
    uneven_model: Any, texts: list[str]
) -> None:
    threshold = 0.9
    tokenizer = tokenizer_of(uneven_model)
    parts = prepare(read_texts(texts), uneven_model, tokenizer)
    held_out = Yardstick(uneven_model, parts.held_out)
    report = uneven_model.apply_quantization(
        MixedPrecisionConfig(**ALL_INT4, accuracy_threshold=threshold), data=texts
    )
    assert report.promotions
    assert report.front[0].relative_accuracy < threshold <= report.accuracy.relative
    assert held_out.measure(uneven_model).relative_accuracy == report.accuracy.relative
    searched = {text.strip() for text in tokenizer.batch_decode(sequences(parts.search))}
    judged = {text.strip() for text in tokenizer.batch_decode(sequences(parts.held_out))}
    lines_searched = {line for text in searched for line in text.splitlines() if line}
    lines_judged = {line for text in judged for line in text.splitlines() if line}
    whole_lines = set(texts)
    assert not (lines_searched & lines_judged & whole_lines)


def test_the_unit_that_loses_most_per_bit_is_promoted_first(
    uneven_model: Any, texts: list[str]
) -> None:
    report = uneven_model.apply_quantization(
        MixedPrecisionConfig(**ALL_INT4, accuracy_threshold=0.9), data=texts
    )
    lost = {(found.unit, found.precision): found.divergence for found in report.sensitivities}
    worst = max(
        {unit for unit, _ in lost},
        key=lambda unit: (
            (lost[unit, Precision.INT4] - lost[unit, Precision.INT8]) / num_weights(report, unit)
        ),
    )
    assert report.promotions[0] == f"{worst} to int8"


def test_the_searchs_order_beats_random_orders_at_equal_bits(
    uneven_model: Any, texts: list[str]
) -> None:
    """Promote half of the units to int8: the best half by sensitivity, or any half."""
    reference = state_of(uneven_model)
    parts = prepare(read_texts(texts), uneven_model, tokenizer_of(uneven_model))
    held_out = Yardstick(uneven_model, parts.held_out)
    found: dict[tuple[str, ...], float] = {}
    names = [f"model.layers.{n}.{part}" for n in (0, 1) for part in ("self_attn", "mlp")]
    report = fresh(uneven_model, reference).apply_quantization(
        MixedPrecisionConfig(**ALL_INT4), data=texts, analyse=True
    )
    ranked = sorted(
        (s for s in report.sensitivities if s.precision is Precision.INT4),
        key=lambda s: -s.divergence / num_weights(report, s.unit),
    )
    chosen = tuple(sorted(module_name(s.unit) for s in ranked[:2]))
    for first in range(4):
        for second in range(first + 1, 4):
            pair = tuple(sorted((names[first], names[second])))
            rules = [{"layers": f"{name}.*", "precision": "int8"} for name in pair]
            model = fresh(uneven_model, reference)
            model.apply_quantization(MixedPrecisionConfig(**ALL_INT4, rules=rules), data=texts)
            found[pair] = held_out.measure(model).divergence
    others = [divergence for pair, divergence in found.items() if pair != chosen]
    assert found[chosen] < sum(others) / len(others) / 2


def test_the_state_file_spares_what_was_measured(
    tiny_llama_dir: Path, texts: list[str], tmp_path: Path
) -> None:
    config = MixedPrecisionConfig(**ALL_INT4, accuracy_threshold=0.99)
    file = tmp_path / "search.json"
    first = apply_quantization(load_model(tiny_llama_dir), config, data=texts, state_file=file)
    known = json.loads(file.read_text())["known"]
    assert len([name for name in known if name.startswith("alone")]) == 8
    again = apply_quantization(load_model(tiny_llama_dir), config, data=texts, state_file=file)
    assert json.loads(file.read_text())["known"] == known
    assert again == first


def test_an_edit_that_fails_is_taken_back(tiny_llama_dir: Path) -> None:
    model = load_model(tiny_llama_dir)
    before = state_of(model)

    def fail() -> None:
        with editing(model) as edit:
            edit.convert_to_16_bits()
            edit.replace("model.layers.0.mlp.up_proj", torch.nn.Identity())
            raise Killed

    with pytest.raises(Killed):
        fail()
    after = state_of(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def tokenizer_of(model: Any) -> Any:
    return AutoTokenizer.from_pretrained(model.config._name_or_path)


def sequences(part: Any) -> list[list[int]]:
    return [row for batch in part.batches for row in batch["input_ids"].tolist()]


def state_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def fresh(model: Any, state: dict[str, torch.Tensor]) -> Any:
    other = load_model(model.config._name_or_path)
    other.load_state_dict(state)
    return other


def module_name(unit: str) -> str:
    block, _, kind = unit.partition(":")
    return f"{block}.{ {'attention': 'self_attn', 'ffn': 'mlp'}[kind] }"


def num_weights(report: Any, unit: str) -> int:
    prefix = f"{module_name(unit)}."
    return sum(layer.num_bytes_before for layer in report.layers if layer.name.startswith(prefix))


def test_bits_rise_with_precision() -> None:
    assert [BITS[precision] for precision in Precision] == [4, 8, 16]
