"""What a report says: per layer, in accuracy and in memory."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from deepseek.core.precision import Precision


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LayerReport(_Section):
    """One layer with a weight matrix."""

    name: str
    layer_class: str
    precision: Precision
    configured: Precision
    """What the config said; `precision` is finer where the layer was promoted."""
    error: float
    """Relative error of the weights: norm of the difference by norm of the float weights."""
    num_bytes: int
    num_bytes_before: int


class AccuracyReport(_Section):
    """Accuracy on held-out data, before and after."""

    metric: str
    before: float
    after: float
    relative: float
    """`after` as a part of `before`; what the threshold is compared with."""
    divergence: float
    """Mean KL divergence from the float model in nats; 1 - cosine for encoders."""
    agreement: float
    """Share of predictions whose first choice is the float model's; mean cosine for encoders."""
    threshold: float | None
    data: str
    num_texts: int
    num_predictions: int
    num_search_texts: int
    """Texts that sensitivities were measured on; none of them is among `num_texts`."""


class SensitivityReport(_Section):
    """How far the model moves when one unit alone is quantized."""

    unit: str
    precision: Precision
    divergence: float


class FrontPoint(_Section):
    """The model after some promotions: its size and its accuracy on the held-out data."""

    num_promotions: int
    bits_per_weight: float
    """Of the layers that the config quantizes."""
    relative_accuracy: float
    divergence: float


class ReportData(_Section):
    """What quantizing a model did to it."""

    model: str
    is_met: bool
    """Whether the threshold is met; a model whose report says no was left as it was."""
    accuracy: AccuracyReport
    fp16_means: str
    """The type that fp16 layers compute in on this device."""
    device: str
    resident_bytes_before: int
    resident_bytes: int
    """All parameters and buffers of the quantized model; both precisions of switchable layers."""
    dynamic_switch: bool
    promotions: list[str]
    """Units and the precision that they were promoted to, in order."""
    sensitivities: list[SensitivityReport]
    """Empty where nothing had to be promoted and no analysis was asked for."""
    front: list[FrontPoint]
    layers: list[LayerReport]

    def counts(self) -> dict[Precision, int]:
        """Return how many layers have each precision."""
        found = [layer.precision for layer in self.layers]
        return {precision: found.count(precision) for precision in Precision}

    def __str__(self) -> str:
        accuracy = self.accuracy
        counts = ", ".join(f"{n} {precision}" for precision, n in self.counts().items() if n)
        threshold = "" if accuracy.threshold is None else f" (asked for: {accuracy.threshold:g})"
        return (
            f"{self.model}: {len(self.layers)} layers: {counts}; fp16 is {self.fp16_means} on "
            f"{self.device}\n"
            f"{accuracy.metric}: {accuracy.before:.4f} before, {accuracy.after:.4f} after; "
            f"relative {accuracy.relative:.4f}{threshold}, divergence {accuracy.divergence:.3g}, "
            f"top-1 agreement {accuracy.agreement:.4f} on "
            f"{accuracy.num_predictions:,} predictions of {accuracy.data}\n"
            f"memory: {self.resident_bytes_before / 2**20:,.1f} MiB before, "
            f"{self.resident_bytes / 2**20:,.1f} MiB after; promoted: "
            f"{', '.join(self.promotions) or 'nothing'}"
        )

    def __repr_args__(self) -> Any:
        # A notebook shows the words, not a hundred layers.
        return [(None, str(self))]
