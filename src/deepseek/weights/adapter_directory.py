"""What a PEFT directory of a LoRA adapter holds, read without loading a tensor.

LoRA: arXiv:2106.09685. Format: https://huggingface.co/docs/peft/developer_guides/checkpoint. Light
on purpose, like `model_directory`: the platform's process refuses a wrong adapter before a worker
sees it. Whether the adapter fits a model, and its tensors, are the engine's.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek.core.errors import AdapterRejected, ConfigurationError
from deepseek.weights.json_files import read_object
from deepseek.weights.safetensors_header import TensorEntry, read_header

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_DTYPES = ("F32", "BF16", "F16")
_TOO_LARGE = 1e9
_HARMLESS_INIT = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Ways of initialising that leave the base model's weights as they are; others (PiSSA, OLoRA,
LoftQ, CorDA, LoRA-GA) shift them, so that the adapter alone is not the trained change."""
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "lora_bias": "a bias beside LoRA's matrices",
    "modules_to_save": "layers trained and saved as a whole",
    "target_parameters": "LoRA on bare parameters",
    "trainable_token_indices": "trained token embeddings",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraLayer:
    """One adapted linear layer: its output gains `scale * up @ down @ input`."""

    name: str
    """As the base model's checkpoint has it, without `.weight`."""
    rank: int
    in_features: int
    out_features: int
    scale: float

    @property
    def down(self) -> str:
        """Name of the (rank, in) tensor in the adapter's file."""
        return f"{_PREFIX}{self.name}{_DOWN}"

    @property
    def up(self) -> str:
        """Name of the (out, rank) tensor in the adapter's file."""
        return f"{_PREFIX}{self.name}{_UP}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterDirectory:
    """A directory that `open_adapter_directory` found complete and supported."""

    path: Path
    layers: tuple[LoraLayer, ...]

    @property
    def weights_file(self) -> Path:
        return self.path / WEIGHTS_FILE

    @property
    def max_rank(self) -> int:
        return max(layer.rank for layer in self.layers)


def open_adapter_directory(path: Path) -> AdapterDirectory:
    """Read and check a directory that PEFT's `save_pretrained` wrote; raises `AdapterRejected`."""
    try:
        config = read_object(path / CONFIG_FILE)
        _require_weights(path)
        tensors = read_header(path / WEIGHTS_FILE)
    except ConfigurationError as error:
        raise AdapterRejected(f"not a usable LoRA adapter: {error.message}") from error
    file = path / CONFIG_FILE
    _check_kind(file, config)
    scales = _Scales(file, config)
    layers = tuple(_layer(path, name, tensors, scales) for name in _adapted(path, tensors))
    if not layers:
        raise AdapterRejected(f"{path / WEIGHTS_FILE} holds no LoRA matrices")
    _check_targets(path, config.get("target_modules"), [layer.name for layer in layers])
    return AdapterDirectory(path=path, layers=layers)


def _require_weights(path: Path) -> None:
    if not (path / WEIGHTS_FILE).exists() and (path / "adapter_model.bin").exists():
        raise AdapterRejected(
            f"{path} has its weights in adapter_model.bin, a pickle, which may run code when it is "
            "read; save the adapter again with safe_serialization=True"
        )


def _check_kind(file: Path, config: Mapping[str, Any]) -> None:
    """Refuse whatever would change the answers and is not computed here."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterRejected(f"{file}: peft_type is {kind!r}; only LORA adapters can be served")
    if config.get("bias", "none") != "none":
        raise AdapterRejected(
            f"{file}: bias is {config['bias']!r}: the adapter changes the base model's biases, "
            "which is not supported; train it with bias='none'"
        )
    for field, meaning in _UNSUPPORTED.items():
        if config.get(field):
            raise AdapterRejected(f"{file}: {field}: {meaning} is not supported")
    init = config.get("init_lora_weights")
    if init not in _HARMLESS_INIT:
        raise AdapterRejected(
            f"{file}: init_lora_weights is {init!r}, which changes the base model's weights; save "
            "the adapter with path_initial_model_for_weight_conversion, which makes it plain LoRA"
        )


class _Scales:
    """Rank and scale of each layer, as the config's patterns say."""

    def __init__(self, file: Path, config: Mapping[str, Any]) -> None:
        self._file = file
        self._use_rslora = bool(config.get("use_rslora"))
        self._rank = self._number(config.get("r"), "r")
        self._alpha = self._number(config.get("lora_alpha"), "lora_alpha")
        self._ranks = self._patterns(config, "rank_pattern")
        self._alphas = self._patterns(config, "alpha_pattern")

    def rank(self, name: str) -> float:
        return _first_match(self._ranks, name, default=self._rank)

    def scale(self, name: str, rank: int) -> float:
        alpha = _first_match(self._alphas, name, default=self._alpha)
        # rsLoRA: arXiv:2312.03732
        return alpha / (math.sqrt(rank) if self._use_rslora else rank)

    def _patterns(
        self, config: Mapping[str, Any], field: str
    ) -> list[tuple[re.Pattern[str], float]]:
        given = config.get(field) or {}
        if not isinstance(given, dict):
            raise AdapterRejected(f"{self._file}: {field} is not a mapping from layers to numbers")
        try:
            # As PEFT matches them: a pattern begins at a dot and ends with the name.
            patterns = [re.compile(rf"(.*\.)?({key})$") for key in given]
        except re.error as error:
            raise AdapterRejected(f"{self._file}: {field} is not valid: {error}") from None
        numbers = [self._number(value, f"{field}.{key}") for key, value in given.items()]
        return list(zip(patterns, numbers, strict=True))

    def _number(self, value: Any, key: str) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < _TOO_LARGE:
            raise AdapterRejected(f"{self._file}: {key} is {value!r}; it must be a number above 0")
        return float(value)


def _first_match(
    patterns: Iterable[tuple[re.Pattern[str], float]], name: str, *, default: float
) -> float:
    return next((value for pattern, value in patterns if pattern.match(name)), default)


def _adapted(path: Path, tensors: Mapping[str, TensorEntry]) -> list[str]:
    """Return the names of the adapted layers; refuse tensors that are no LoRA matrices."""
    names: dict[str, None] = {}
    for tensor in tensors:
        suffix = next((s for s in (_DOWN, _UP) if tensor.endswith(s)), None)
        if suffix is None or not tensor.startswith(_PREFIX):
            raise AdapterRejected(
                f"{path / WEIGHTS_FILE}: tensor {tensor!r} is not a LoRA matrix of a linear layer "
                f"({_PREFIX}LAYER{_DOWN} or {_UP}); nothing else can be adapted"
            )
        names[tensor.removeprefix(_PREFIX).removesuffix(suffix)] = None
    return list(names)


def _layer(path: Path, name: str, tensors: Mapping[str, TensorEntry], scales: _Scales) -> LoraLayer:
    file = path / WEIGHTS_FILE
    down, up = (tensors.get(f"{_PREFIX}{name}{suffix}") for suffix in (_DOWN, _UP))
    if down is None or up is None:
        raise AdapterRejected(f"{file}: layer {name!r} has only one of its two LoRA matrices")
    for entry in (down, up):
        if entry.dtype not in _DTYPES:
            raise AdapterRejected(
                f"{file}: layer {name!r} is stored as {entry.dtype}; store it as F32, BF16 or F16"
            )
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1]:
        raise AdapterRejected(
            f"{file}: layer {name!r} has LoRA matrices of shapes {down.shape} and {up.shape}; they "
            "must be (rank, in) and (out, rank)"
        )
    rank = down.shape[0]
    if rank != scales.rank(name):
        raise AdapterRejected(
            f"{file}: layer {name!r} has rank {rank}, {CONFIG_FILE} says {scales.rank(name):g}"
        )
    return LoraLayer(
        name=name,
        rank=rank,
        in_features=down.shape[1],
        out_features=up.shape[0],
        scale=scales.scale(name, rank),
    )


def _check_targets(path: Path, targets: Any, names: list[str]) -> None:
    """Refuse a file from which layers that the config lists are missing (a partial copy)."""
    if not isinstance(targets, list):
        return  # a pattern says which layers may be adapted, not which are
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise AdapterRejected(
                f"{path / CONFIG_FILE}: target_modules names {target!r}, but {WEIGHTS_FILE} has no "
                "matrices for it"
            )
