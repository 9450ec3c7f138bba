"""How near a changed model stays to the model as it was, on one part of the data.

Scores are what a model ranks its answers by: the logits of each token or text, or the mean-pooled
vector of an encoder without a head. A model's own scores from before are the yardstick.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from deepseek.core.errors import InvalidQuantization
from deepseek.quantization.calibration import Part
from deepseek.quantization.config import AccuracyMetric

_MIN_TEXTS = 16
_MIN_TOKENS = 128


class Metric(StrEnum):
    """What accuracy means, in the report's words."""

    ACCURACY = "accuracy on the labels"
    AGREEMENT = "top-1 agreement with the float model"
    LIKELIHOOD = "likelihood of the float model's answers, exp(-KL)"
    COSINE = "mean cosine with the float model's vectors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """The distance of a model from the model as it was."""

    accuracy: float
    """In the metric's own terms."""
    relative_accuracy: float
    """`accuracy` as a part of the float model's; what a threshold is compared with."""
    divergence: float
    """Mean KL divergence from the float model's distribution in nats, or 1 - cosine."""
    agreement: float
    """Share of predictions whose first choice is the float model's, or the mean cosine."""


class Yardstick:
    """The float model's scores on one part; kept on the model's device, in float32."""

    def __init__(
        self, model: PreTrainedModel, part: Part, *, wanted: AccuracyMetric = "auto"
    ) -> None:
        """Ask the float model; raises `InvalidQuantization` where it has no usable scores."""
        self._part = part
        self._labels = None if part.labels is None else part.labels.to(model.device)
        answers = [_answer(model, batch) for batch in part.batches]
        self._scores = [answer.scores for answer in answers]
        self._is_generative = model.can_generate()
        self.num_predictions = sum(len(scores) for scores in self._scores)
        self.metric = self._metric(wanted, is_ranked=any(answer.is_ranked for answer in answers))
        if self.metric is not Metric.COSINE and self._scores[0].shape[-1] < 2:
            raise InvalidQuantization(
                f"{type(model).__name__} has one label and ranks nothing; models that choose "
                "between answers can be judged",
                param="model",
            )
        if not all(bool(torch.isfinite(scores).all()) for scores in self._scores):
            raise InvalidQuantization(
                "the float model's own scores are infinite or no numbers on the calibration data; "
                "check its weights, or load it in bfloat16",
                param="model",
            )
        self.float_accuracy = (
            self._share_right(self._scores) if self.metric is Metric.ACCURACY else 1.0
        )

    def measure(self, model: PreTrainedModel) -> Fidelity:
        """Return how far a model of the same shape is away."""
        found = [_answer(model, batch).scores for batch in self._part.batches]
        if not all(bool(torch.isfinite(scores).all()) for scores in found):
            raise InvalidQuantization(
                f"the model's scores are infinite or no numbers in {model.dtype}, which they are "
                "not as it was loaded; leave more layers in fp16",
                param="model",
            )
        pairs = list(zip(self._scores, found, strict=True))
        if self.metric is Metric.COSINE:
            cosine = torch.cat([functional.cosine_similarity(a, b) for a, b in pairs])
            mean = cosine.double().mean().item()
            return Fidelity(
                accuracy=mean, relative_accuracy=mean, divergence=max(0.0, 1 - mean), agreement=mean
            )
        same = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in pairs])
        agreement = same.double().mean().item()
        divergence = max(0.0, torch.cat([_kl(a, b) for a, b in pairs]).double().mean().item())
        accuracy = {
            Metric.AGREEMENT: lambda: agreement,
            Metric.LIKELIHOOD: lambda: math.exp(-divergence),
            Metric.ACCURACY: lambda: self._share_right(found),
        }[self.metric]()
        return Fidelity(
            accuracy=accuracy,
            relative_accuracy=accuracy / self.float_accuracy,
            divergence=divergence,
            agreement=agreement,
        )

    def require_enough(self, threshold: float | None) -> None:
        """Raise `InvalidQuantization` where too few answers would decide about the threshold."""
        kind, needed = ("tokens", _MIN_TOKENS) if self._is_generative else ("texts", _MIN_TEXTS)
        has_steps = self.metric in (Metric.AGREEMENT, Metric.ACCURACY)
        if threshold is not None and threshold < 1 and has_steps:
            # These come in steps of 1/n; one answer alone must not be the difference.
            needed = max(needed, math.ceil(1 / (1 - threshold) - 1e-9))
        if self.num_predictions < needed:
            raise InvalidQuantization(
                f"data: too short: {self.num_predictions} {kind} are left to judge by, "
                f"{needed} are needed at least; give more or longer texts",
                param="data",
            )
        if self.float_accuracy == 0:
            raise InvalidQuantization(
                "data: the float model gives no right answer, so that there is none to keep; check "
                "that the labels are this model's",
                param="data",
            )

    def _metric(self, wanted: AccuracyMetric, *, is_ranked: bool) -> Metric:
        if not is_ranked:
            if wanted != "auto":
                raise InvalidQuantization(
                    f"accuracy_metric: {wanted} is for models that rank answers; this encoder "
                    "gives vectors, leave it at auto",
                    param="accuracy_metric",
                )
            return Metric.COSINE
        if wanted == "agreement":
            return Metric.AGREEMENT
        if wanted == "likelihood":
            return Metric.LIKELIHOOD
        if self._labels is not None:
            return Metric.ACCURACY
        return Metric.LIKELIHOOD if self._is_generative else Metric.AGREEMENT

    def _share_right(self, scores: list[torch.Tensor]) -> float:
        right = torch.cat([batch.argmax(-1) for batch in scores]) == self._labels
        return right.double().mean().item()


def _kl(reference: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Return the KL divergence of each row (n, classes) from the reference's."""
    log_p, log_q = reference.log_softmax(-1), found.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@dataclass(frozen=True, slots=True)
class _Answer:
    scores: torch.Tensor
    """(n, classes or width), padding left out."""
    is_ranked: bool
    """Whether the scores are logits, the highest of which is the answer."""


@torch.inference_mode()
def _answer(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> _Answer:
    inputs = {name: value.to(model.device) for name, value in batch.items()}
    options = {"use_cache": False} if model.can_generate() else {}
    output = model(**inputs, **options)
    mask = inputs.get("attention_mask")
    if "logits" not in output:
        return _Answer(_pooled(output.last_hidden_state.float(), mask), is_ranked=False)
    logits = output.logits.float()
    if logits.dim() > 2:  # a row a token; else a row a text
        logits = logits.flatten(0, 1) if mask is None else logits[mask.bool()]
    return _Answer(logits, is_ranked=True)


def _pooled(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None:
        return hidden.mean(dim=1)
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
