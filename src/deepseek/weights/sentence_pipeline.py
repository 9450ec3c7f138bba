"""What follows the encoder in a sentence-transformers directory: pooling, dense, normalisation.

The directory lists its modules in `modules.json`; modules that change nothing at inference
(`Dropout`) are skipped, unknown ones are refused.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deepseek.core.errors import CorruptWeights, ModelSourceError, UnsupportedModel
from deepseek.weights.json_files import read_json, read_object
from deepseek.weights.safetensors_header import read_header

Pooling = Literal["mean", "cls", "max"]

_POOLING_MODES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_cls_tokens": "cls",
    "pooling_mode_max_tokens": "max",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseModule:
    """A linear layer (`linear.weight`, `linear.bias` in model.safetensors) and its activation."""

    path: Path
    activation: str
    """Dotted class name, e.g. `torch.nn.modules.linear.Identity`."""
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePipeline:
    """Applied in this order: pooling over tokens, the dense layers, division by the L2 norm."""

    pooling: Pooling
    normalize: bool
    dense: tuple[DenseModule, ...]


def read_sentence_pipeline(path: Path) -> SentencePipeline | None:
    """Parse the directory's modules; None where it is no sentence-transformers directory."""
    file = path / "modules.json"
    if not file.exists():
        return None
    pooling: Pooling = "mean"
    dense: list[DenseModule] = []
    normalize = False
    for module in _modules(file):
        directory = path / str(module.get("path", ""))
        kind = str(module.get("type", "")).rpartition(".")[2]
        match kind:
            case "Transformer" | "Dropout":
                continue
            case "Pooling":
                pooling = _read_pooling(directory / "config.json")
            case "Dense" if not normalize:
                dense.append(_read_dense(directory))
            case "Normalize":
                normalize = True
            case _:
                raise UnsupportedModel(
                    f"{file}: module {kind!r} is not supported at its place; supported are "
                    "Transformer, Pooling, Dense and Normalize, in this order"
                )
    return SentencePipeline(pooling=pooling, normalize=normalize, dense=tuple(dense))


def _modules(file: Path) -> list[dict[str, Any]]:
    modules = read_json(file)
    if not isinstance(modules, list) or not all(isinstance(item, dict) for item in modules):
        raise ModelSourceError(f"{file} is not a list of modules; fetch the model again")
    return modules


def _read_pooling(file: Path) -> Pooling:
    config = read_object(file)
    if "pooling_mode" in config:  # how sentence-transformers 5.3 and later write it
        modes = [f"pooling_mode_{config['pooling_mode']}_tokens"]
    else:
        modes = [key for key, on in config.items() if key.startswith("pooling_mode_") and on]
    pooling = _POOLING_MODES.get(modes[0]) if len(modes) == 1 else None
    if pooling is None:
        raise UnsupportedModel(
            f"{file}: pooling {' + '.join(modes) or '(none)'} is not supported; "
            f"supported is one of {', '.join(_POOLING_MODES)}"
        )
    return pooling


def _read_dense(directory: Path) -> DenseModule:
    config = read_object(directory / "config.json")
    weights = directory / "model.safetensors"
    weight = read_header(weights).get("linear.weight")
    if weight is None or len(weight.shape) != 2:
        raise CorruptWeights(f"{weights} has no matrix 'linear.weight'; fetch the model again")
    return DenseModule(
        path=directory,
        activation=str(config.get("activation_function", "torch.nn.modules.linear.Identity")),
        in_features=weight.shape[1],
        out_features=weight.shape[0],
    )
