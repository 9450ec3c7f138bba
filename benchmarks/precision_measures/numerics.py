"""What a number format costs: KL divergence from float32 and perplexity, weights of all layers but
the head quantised, on sentences of SST-2 that calibration has not seen.
"""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from frame import SHARED_DATA, Row, bound, fact
from serving_measures.platform import Run
from torch.nn import functional
from transformers import AutoTokenizer

from deepseek.core.precision import Precision
from deepseek.quantization.int4.gptq import InputMoments, gptq
from deepseek.quantization.int4.rounding import round_to_nearest
from deepseek.quantization.int4.scale_search import search_scales
from deepseek.quantization.nested import NestedLinear, NestedWeights, pack, pack_residual, unpack
from deepseek.weights.cache import ModelCache
from precision_measures.rotated import rotated_model

GROUP = 64
_WINDOW = 256
_CALIBRATION_WINDOWS, _TEST_WINDOWS = 32, 8

Weights = dict[str, torch.Tensor]


def numerics(run: Run, details: dict[str, Any]) -> list[Row]:
    """Return KL and perplexity of every format, with the targets of nested precision."""
    study = _Study(quick=run.quick)
    found = {name: study.score(make) for name, make in study.formats().items()}
    found |= study.kernels()
    details["numerics"] = {
        "tokens": study.test.numel(),
        "float32 perplexity": study.perplexity,
        **{name: {"kl": kl, "perplexity": ppl} for name, (kl, ppl) in found.items()},
    }
    rows = [fact("float32: perplexity", study.perplexity)]
    for name, (kl, ppl) in found.items():
        rows += [fact(f"{name}: KL", kl), fact(f"{name}: perplexity", ppl)]
    return rows + _targets({name: kl for name, (kl, _) in found.items()}, found, study.perplexity)


def _targets(
    kl: dict[str, float], found: dict[str, tuple[float, float]], perplexity: float
) -> list[Row]:
    better = min(kl["int4 symmetric"], kl["int4 asymmetric"])
    rounding = min(better, kl["int4 nested"])
    return [
        bound(
            "int4 nested: KL over the better rounding's", kl["int4 nested"] / better, at_most=1.1
        ),
        bound("int4 GPTQ: KL over the best rounding's", kl["int4 GPTQ"] / rounding, at_most=0.5),
        *(
            bound(
                f"{name}: change of perplexity, %",
                100 * abs(found[name][1] / perplexity - 1),
                at_most=0.5,
            )
            for name in ("int8 nested", "int8 GPTQ", "int8 nested, kernel", "int8 GPTQ, kernel")
        ),
    ]


class _Study:
    """The model, its text, and what float32 answers."""

    def __init__(self, *, quick: bool) -> None:
        directory = ModelCache.default().root / "models" / "smollm2-135m"
        self.model = rotated_model(directory)
        self.layers = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, torch.nn.Linear) and name != "lm_head"
        }
        self.weights = {name: layer.weight.data for name, layer in self.layers.items()}
        tokenizer = AutoTokenizer.from_pretrained(directory)
        num_windows = (8, 2) if quick else (_CALIBRATION_WINDOWS, _TEST_WINDOWS)
        self.calibration = _windows("sst_train.tsv", tokenizer, num_windows[0])
        self.test = _windows("sst_test.tsv", tokenizer, num_windows[1])
        self.float32 = self._log_probabilities()
        self.perplexity = self._perplexity(self.float32)
        self.nested: dict[str, dict[str, NestedWeights]] = {}

    def formats(self) -> dict[str, Callable[[], Weights]]:
        """Return what makes the weights of each format."""

        def all_of(quantize: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], Weights]:
            return lambda: {name: quantize(weight) for name, weight in self.weights.items()}

        def read(name: str, precision: Precision) -> Callable[[], Weights]:
            return lambda: {
                layer: unpack(weights, precision) for layer, weights in self.packed(name).items()
            }

        algorithms = ("nested", "rounding", "searched", "GPTQ")
        return {
            "int8 plain": all_of(lambda weight: _symmetric(weight, bits=8)),
            "int4 symmetric": all_of(lambda weight: _symmetric(weight, bits=4)),
            "int4 asymmetric": all_of(lambda weight: _asymmetric(weight, bits=4)),
            **{f"int4 {name}": read(name, Precision.INT4) for name in algorithms},
            **{f"int8 {name}": read(name, Precision.INT8) for name in algorithms},
        }

    def packed(self, name: str) -> dict[str, NestedWeights]:
        """Return the nested weights of an algorithm."""
        if name not in self.nested:
            moments = self._moments() if name == "GPTQ" else {}
            self.nested[name] = {
                layer: _packed(name, weight, moments.get(layer))
                for layer, weight in self.weights.items()
            }
        return self.nested[name]

    def score(self, make: Callable[[], Weights]) -> tuple[float, float]:
        """Return KL and perplexity with other weights; the model's own return afterwards."""
        try:
            for name, weight in make().items():
                self.layers[name].weight.data = weight
            return self._score()
        finally:
            for name, layer in self.layers.items():
                layer.weight.data = self.weights[name]

    def kernels(self) -> dict[str, tuple[float, float]]:
        """Return the same with products as they are served: activations in 8 bits too."""
        found = {}
        for algorithm in ("nested", "GPTQ"):
            for precision in (Precision.INT8, Precision.INT4):
                for name, weights in self.packed(algorithm).items():
                    layer = NestedLinear.from_weights(weights, precision=precision)
                    self.model.set_submodule(name, layer)
                found[f"{precision} {algorithm}, kernel"] = self._score()
        for name, layer in self.layers.items():
            self.model.set_submodule(name, layer)
        return found

    def _moments(self) -> dict[str, InputMoments]:
        """Return the moments of every layer's inputs; those with one input share theirs."""
        moments: dict[str, InputMoments] = {}
        hooks = []
        for name, layer in self.layers.items():
            leader = _sharing(name)
            if leader == name:
                moments[name] = InputMoments(layer.in_features)
                hooks.append(layer.register_forward_pre_hook(_adding_to(moments[name])))
        with torch.inference_mode():
            for window in self.calibration:
                self.model.model(window[None])
        for hook in hooks:
            hook.remove()
        return {name: moments[_sharing(name)] for name in self.layers}

    def _log_probabilities(self) -> torch.Tensor:
        with torch.inference_mode():
            return torch.stack(
                [self.model(window[None]).logits[0].log_softmax(dim=1) for window in self.test]
            )

    def _perplexity(self, found: torch.Tensor) -> float:
        expected = self.test[:, 1:].flatten()
        return math.exp(functional.nll_loss(found[:, :-1].flatten(0, 1), expected).item())

    def _score(self) -> tuple[float, float]:
        found = self._log_probabilities()
        kl = functional.kl_div(found, self.float32, log_target=True, reduction="none").sum(dim=2)
        return kl.mean().item(), self._perplexity(found)


def _packed(name: str, weight: torch.Tensor, moments: InputMoments | None) -> NestedWeights:
    if name == "nested":
        return pack(weight)
    if moments is not None:
        hessian = moments.hessian()
        int4 = gptq(weight, hessian)
        return pack_residual(weight, int4, gptq(weight - int4.dequantized(), hessian))
    return pack_residual(
        weight, {"rounding": round_to_nearest, "searched": search_scales}[name](weight)
    )


def _sharing(name: str) -> str:
    """Return the first of the layers that read the same inputs."""
    for others, first in ((("k_proj", "v_proj"), "q_proj"), (("up_proj",), "gate_proj")):
        for other in others:
            if name.endswith(other):
                return name.removesuffix(other) + first
    return name


def _adding_to(moments: InputMoments) -> Callable[[torch.nn.Module, tuple[torch.Tensor]], None]:
    return lambda _, inputs: moments.add(inputs[0])


def _windows(file: str, tokenizer: Any, count: int) -> torch.Tensor:
    """Return (count, window) tokens of the file's sentences, one after the other."""
    path: Path = SHARED_DATA / "sst2" / file
    if not path.exists():
        raise FileNotFoundError(f"{path} is absent; the measure reads its text")
    with path.open() as lines:
        sentences = [line[0] for line in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)]
    text = "\n".join(sentences[1 : count * _WINDOW])
    tokens = tokenizer(text, return_tensors="pt").input_ids[0]
    return tokens[: count * _WINDOW].view(count, _WINDOW)


def _symmetric(weight: torch.Tensor, *, bits: int) -> torch.Tensor:
    grouped, most = weight.unflatten(1, (-1, GROUP)), 2 ** (bits - 1) - 1
    scales = grouped.abs().amax(dim=2, keepdim=True) / most
    return ((grouped / scales).round() * scales).flatten(1)


def _asymmetric(weight: torch.Tensor, *, bits: int) -> torch.Tensor:
    grouped = weight.unflatten(1, (-1, GROUP))
    least = grouped.amin(dim=2, keepdim=True)
    scales = (grouped.amax(dim=2, keepdim=True) - least) / (2**bits - 1)
    return (((grouped - least) / scales).round() * scales + least).flatten(1)
