"""What a user says about precision: defaults per class of layer, rules by name, limits on loss.

Light on purpose: a deployment file may hold this block, and its reader never loads torch.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from deepseek.core.precision import Precision, finer
from deepseek.core.settings import Settings

Int4Algorithm = Literal["rounding", "search", "gptq"]
AccuracyMetric = Literal["auto", "agreement", "likelihood"]


class LayerRule(Settings):
    """A precision for the layers whose module name matches."""

    layers: str = Field(min_length=1)
    """Pattern of module names, e.g. `model.layers.0.*`; `*` stands for any text, dots included.
    A pattern that matches no layer is an error."""
    precision: Precision
    """What these layers compute in: int4, int8 or fp16."""


class SwitchPolicy(Settings):
    """Which precision a request gets where the caller does not name one.

    Weights that can switch hold both planes, so that no choice here costs memory.
    """

    floor: Precision = Precision.INT4
    """The lowest precision that a request may get, under pressure too; default int4."""
    by_class: dict[str, Precision] = Field(default_factory=dict)
    """Precision by request class, e.g. `batch: int4`; other classes get what the layers have."""
    long_input_tokens: int | None = Field(default=None, ge=1)
    """Inputs of at least so many tokens run at the floor; default: length does not matter."""
    shed_load: bool = True
    """Whether requests run at the floor while the model's queue is under pressure; default true."""

    def choose(
        self,
        *,
        request_class: str | None = None,
        num_input_tokens: int = 0,
        is_under_pressure: bool = False,
    ) -> Precision:
        """Return the precision of a request that does not name one itself.

        FP16 stands for what each layer was given.
        """
        is_long = self.long_input_tokens is not None and num_input_tokens >= self.long_input_tokens
        if is_long or (is_under_pressure and self.shed_load):
            return self.floor
        return finer(self.by_class.get(request_class or "", Precision.FP16), self.floor)


def _policy_of(value: Any) -> Any:
    if isinstance(value, bool):
        return SwitchPolicy() if value else None
    return value


class MixedPrecisionConfig(Settings):
    """Precision per layer: the first rule that matches a layer's name, else its class's default."""

    attention_layers: Precision = Precision.INT8
    """Projections of attention, e.g. query, key, value, output; default int8."""
    ffn_layers: Precision = Precision.INT8
    """Feed-forward projections inside the repeated blocks; default int8."""
    head_layers: Precision = Precision.FP16
    """Linear layers outside the repeated blocks: output head, pooler, classifier. The most
    sensitive ones, so that the default is fp16."""
    rules: list[LayerRule] = Field(default_factory=list)
    """Exceptions by module name; the first that matches a layer decides."""
    dynamic_switch: Annotated[
        SwitchPolicy | None,
        BeforeValidator(_policy_of, json_schema_input_type=SwitchPolicy | bool | None),
    ] = None
    """Whether a request may run below the layers' precision: true, or a policy that says when;
    default false, which drops the weights' low planes that int4 layers do not need."""
    accuracy_threshold: float | None = Field(default=None, gt=0, le=1)
    """Least accuracy relative to the model as it was, on data that the search has not seen. Layers
    are promoted until it is met, or the model is refused; default: measured, not enforced."""
    accuracy_metric: AccuracyMetric = "auto"
    """What accuracy is: agreement (share of equal first choices), likelihood (exp(-KL): how much
    of the float model's choices is kept, a ratio of perplexities), or auto, the default: accuracy
    where the data has labels, likelihood for language models, agreement for classifiers, the mean
    cosine for encoders."""
    group_size: Literal[32, 64, 128] = 64
    """Inputs that share one scale: 32, 64 or 128. Must divide the inputs of every quantized layer;
    default 64."""
    int4_algorithm: Int4Algorithm = "rounding"
    """How int4 values are chosen: rounding, search (of scales) or gptq (learns from the data)."""
