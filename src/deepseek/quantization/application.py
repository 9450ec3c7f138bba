"""`apply_quantization`: from a float model and a config to a quantized model and its report.

The steps, in order: assign a precision to every layer; ask the float model for its answers on the
data; pack the weights; promote what the threshold demands; say what came of it. Until the last step
the model can be, and on any error is, put back as it was.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3
from torch import uint8
from transformers import AutoTokenizer, PreTrainedModel

from deepseek.core.errors import InvalidQuantization, QuantizationRefused
from deepseek.core.precision import Precision
from deepseek.quantization.assignment import Assignment, assign
from deepseek.quantization.board import LayerBoard, module_bytes, units_of
from deepseek.quantization.calibration import CalibrationData, Data, Texts, prepare, read_texts
from deepseek.quantization.config import MixedPrecisionConfig
from deepseek.quantization.editing import SIXTEEN_BITS, editing, resident_bytes
from deepseek.quantization.fidelity import Yardstick
from deepseek.quantization.layers import Layer, find_layers
from deepseek.quantization.measurements import Measurements
from deepseek.quantization.nested import NestedLinear
from deepseek.quantization.pretrained import METHOD, NestedConfig, NestedQuantizer, layer_entry
from deepseek.quantization.report import QuantizationReport
from deepseek.quantization.report_data import (
    AccuracyReport,
    FrontPoint,
    LayerReport,
    SensitivityReport,
)
from deepseek.quantization.search import BITS, Outcome, Point, Search, Unit
from deepseek.weights.progress import Progress, SilentProgress


def apply_quantization(
    model: PreTrainedModel,
    config: MixedPrecisionConfig,
    *,
    data: Data = None,
    tokenizer: Any = None,
    analyse: bool = False,
    state_file: Path | None = None,
    progress: Progress | None = None,
) -> QuantizationReport:
    """Quantize a model in place and return what it did to it.

    `data` are texts to judge by (see `calibration.Data`); `tokenizer` is needed where the model was
    not loaded from a directory that holds one. `analyse` measures every unit's sensitivity and the
    size-accuracy front even where nothing must be promoted. With `state_file` a search that was
    killed goes on where it ended.

    Raises `InvalidQuantization` for a config or data that do not fit the model, and
    `QuantizationRefused`, with the report, where the accuracy asked for cannot be had. The model is
    as it was then.
    """
    progress = progress or SilentProgress()
    layers = find_layers(model)
    assignment = assign(layers, config)
    texts = read_texts(data)
    parts = prepare(texts, model, tokenizer or _tokenizer_of(model))
    known = Measurements(state_file, fingerprint=_fingerprint(model, config, texts, state_file))
    before = _Before(model, layers)
    with editing(model) as edit:
        progress.stage("asking the float model")
        held_out = Yardstick(model, parts.held_out, wanted=config.accuracy_metric)
        held_out.require_enough(config.accuracy_threshold)
        board = LayerBoard(
            edit,
            layers,
            assignment=assignment,
            config=config,
            search=Yardstick(model, parts.search),
            held_out=held_out,
            calibration=parts.calibration,
            progress=progress,
        )
        units = units_of(layers, assignment)
        outcome = Search(board, units, measurements=known, progress=progress).run(
            threshold=config.accuracy_threshold, analyse=analyse
        )
        if not config.dynamic_switch:
            board.drop_low_planes()
        report = _report(
            model, config, layers, assignment=assignment, before=before, board=board,
            held_out=held_out, parts=parts, outcome=outcome, units=units,
        )  # fmt: skip
        if outcome.point is None:
            raise QuantizationRefused(_refusal(report), param="accuracy_threshold", report=report)
        _mark_as_quantized(model, board.quantized(), config)
    return report


class _Before:
    """The sizes of a model that is about to be changed."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[Layer]) -> None:
        self.resident_bytes = resident_bytes(model)
        self.layer_bytes = {layer.name: module_bytes(layer.module) for layer in layers}


def _tokenizer_of(model: PreTrainedModel) -> Any:
    path = model.config._name_or_path
    try:
        if path:
            return AutoTokenizer.from_pretrained(path, local_files_only=True)
        reason = "the model was not loaded from a directory"
    except (OSError, ValueError) as error:
        reason = f"{path} holds none ({error})".partition("\n")[0]
    raise InvalidQuantization(
        f"tokenizer: none is known: {reason}; pass the model's own as `tokenizer`",
        param="tokenizer",
    )


def _fingerprint(
    model: PreTrainedModel, config: MixedPrecisionConfig, texts: Texts, state_file: Path | None
) -> str:
    """Return what the measurements of a search hang on; nothing where none are kept."""
    if state_file is None:
        return ""
    digest = blake3(config.model_dump_json().encode())
    digest.update(repr((texts.texts, texts.labels, type(model).__name__)).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(uint8).numpy())
    return digest.hexdigest()


def _refusal(report: QuantizationReport) -> str:
    best = report.front[-1]
    return (
        f"accuracy_threshold: {report.accuracy.threshold:g} is not met: {report.accuracy.metric} "
        f"relative to the float model is {best.relative_accuracy:.4f} with every layer in 16 bits "
        f"and {report.front[0].relative_accuracy:.4f} as configured. The model was left as it was; "
        "lower the threshold, or give data that is nearer to what the model is used for"
    )


def _mark_as_quantized(
    model: PreTrainedModel, layers: Mapping[str, NestedLinear], config: MixedPrecisionConfig
) -> None:
    """Let transformers know what it needs to save the model and to load it again."""
    if not layers:
        return
    entries = {name: layer_entry(layer) for name, layer in layers.items()}
    saved = NestedConfig(entries, config.model_dump(mode="json"))
    model.config.quantization_config = saved
    model.config._is_quantized = True
    model.hf_quantizer = NestedQuantizer(saved)
    model.is_quantized = True
    model.quantization_method = METHOD


def _report(
    model: PreTrainedModel,
    config: MixedPrecisionConfig,
    layers: Sequence[Layer],
    *,
    assignment: Assignment,
    before: _Before,
    board: LayerBoard,
    held_out: Yardstick,
    parts: CalibrationData,
    outcome: Outcome,
    units: Sequence[Unit],
) -> QuantizationReport:
    chosen = outcome.point or outcome.front[-1]
    fidelity = chosen.held_out
    return QuantizationReport(
        model=type(model).__name__,
        is_met=outcome.point is not None,
        accuracy=AccuracyReport(
            metric=held_out.metric,
            before=held_out.float_accuracy,
            after=fidelity.accuracy,
            relative=fidelity.relative_accuracy,
            divergence=fidelity.divergence,
            agreement=fidelity.agreement,
            threshold=config.accuracy_threshold,
            data=parts.source,
            num_texts=parts.held_out.num_texts,
            num_predictions=held_out.num_predictions,
            num_search_texts=parts.search.num_texts,
        ),
        fp16_means=str(SIXTEEN_BITS).removeprefix("torch."),
        device=str(model.device),
        resident_bytes_before=before.resident_bytes,
        resident_bytes=resident_bytes(model),
        dynamic_switch=config.dynamic_switch is not None,
        promotions=[
            f"{promotion.unit.name} to {promotion.to}"
            for promotion in outcome.order[: chosen.num_promotions]
        ],
        sensitivities=[
            SensitivityReport(unit=unit, precision=precision, divergence=divergence)
            for unit, found in outcome.sensitivities.items()
            for precision, divergence in found.items()
        ],
        front=[_front_point(point, units) for point in outcome.front],
        layers=[_layer_report(layer, board, assignment, before) for layer in layers],
    )


def _front_point(point: Point, units: Sequence[Unit]) -> FrontPoint:
    num_weights = sum(unit.num_weights for unit in units)
    bits = point.weight_bits / num_weights if num_weights else BITS[Precision.FP16]
    return FrontPoint(
        num_promotions=point.num_promotions,
        bits_per_weight=bits,
        relative_accuracy=point.held_out.relative_accuracy,
        divergence=point.held_out.divergence,
    )


def _layer_report(
    layer: Layer, board: LayerBoard, assignment: Assignment, before: _Before
) -> LayerReport:
    state = board.state(layer.name)
    return LayerReport(
        name=layer.name,
        layer_class=layer.layer_class,
        precision=state.precision,
        configured=assignment[layer.name],
        error=state.error,
        num_bytes=state.num_bytes,
        num_bytes_before=before.layer_bytes[layer.name],
    )
