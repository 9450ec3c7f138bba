"""Accuracy and throughput on GLUE's 872 SST-2 rows, float32 beside mixed precision, three seeds.

Every model answers every row, so that accuracies are compared pair by pair: agreement, and
McNemar's exact test on the rows where only one of the two is right.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from frame import Row, bound, comparison, fact
from serving_measures.platform import Run
from transformers import AutoTokenizer

from deepseek import load_model
from deepseek.quantization import MixedPrecisionConfig
from glue_measures.training import read_rows, trained_model

_SEEDS = (0, 1, 2)
_ROUNDS = 3
_BATCH_ROWS = 32
_NUM_CALIBRATION_ROWS = 100
_FLOAT = "float32"

CONFIGS: Mapping[str, MixedPrecisionConfig] = {
    # The article's case: query, key and value in INT8, all else in 16 bits, the head too.
    "QKV INT8": MixedPrecisionConfig.model_validate(
        {
            "attention_layers": "fp16",
            "ffn_layers": "fp16",
            "rules": [{"layers": "*.attention.self.*", "precision": "int8"}],
        }
    ),
    "all but the head INT8": MixedPrecisionConfig(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """What float32 and one config made of the same rows."""

    float_right: torch.Tensor
    right: torch.Tensor
    same_answer: torch.Tensor
    float_rows_per_s: float
    rows_per_s: float

    @property
    def drop_points(self) -> float:
        """Points of accuracy that are lost; negative where some are won."""
        return 100 * (self.float_right.double().mean() - self.right.double().mean()).item()


def sst2(run: Run) -> list[Row]:
    """Measure every config on each seed's model."""
    seeds = _SEEDS[: run.count(len(_SEEDS), 1)]
    measured = [_measure(seed, rounds=run.count(_ROUNDS, 1)) for seed in seeds]
    accuracies = [pairs["QKV INT8"].float_right.double().mean().item() for pairs in measured]
    rows = [
        fact("SST-2: accuracy in float32, mean of seeds", statistics.fmean(accuracies)),
        fact("SST-2: rows", len(measured[0]["QKV INT8"].right)),
    ]
    for name in CONFIGS:
        rows += _rows(name, [pairs[name] for pairs in measured])
    return rows


def _rows(name: str, pairs: list[_Pair]) -> list[Row]:
    drops = [pair.drop_points for pair in pairs]
    agreements = [pair.same_answer.double().mean().item() for pair in pairs]
    lost, won = _discordant(pairs)
    return [
        bound(f"{name}: drop in points, mean of seeds", statistics.fmean(drops), at_most=0.3),
        fact(f"{name}: drop in points, worst seed", max(drops)),
        bound(f"{name}: answers as float32's, worst seed", min(agreements), at_least=0.99),
        fact(f"{name}: rows that float32 alone has right, all seeds", lost),
        fact(f"{name}: rows that mixed precision alone has right, all seeds", won),
        bound(f"{name}: McNemar's exact p", mcnemar_p(lost, won), at_least=0.05),
        comparison(
            f"{name}: rows/s (float32)",
            ours=statistics.median(pair.rows_per_s for pair in pairs),
            peer=statistics.median(pair.float_rows_per_s for pair in pairs),
            at_least=2.0,
        ),
    ]


def mcnemar_p(lost: int, won: int) -> float:
    """Return the two-sided p of so uneven a split of the rows where only one is right."""
    total = lost + won
    tail = sum(math.comb(total, k) for k in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / 2**total)


def _discordant(pairs: list[_Pair]) -> tuple[int, int]:
    lost = sum(int((pair.float_right & ~pair.right).sum()) for pair in pairs)
    won = sum(int((~pair.float_right & pair.right).sum()) for pair in pairs)
    return lost, won


def _measure(seed: int, *, rounds: int) -> dict[str, _Pair]:
    """Return what each config made of one seed's model."""
    directory = trained_model(seed)
    rows = sorted(read_rows("test"), key=lambda row: len(row[0]))
    labels = torch.tensor([label for _, label in rows])
    batches = _batches([text for text, _ in rows], AutoTokenizer.from_pretrained(directory))
    models = {_FLOAT: load_model(directory)}
    for name, config in CONFIGS.items():
        models[name] = load_model(directory)
        models[name].apply_quantization(config, data=read_rows("dev")[:_NUM_CALIBRATION_ROWS])
    answers = {name: _answers(model, batches) for name, model in models.items()}
    seconds = _alternating(
        {name: partial(_answers, model, batches) for name, model in models.items()}, rounds=rounds
    )
    return {
        name: _Pair(
            float_right=answers[_FLOAT] == labels,
            right=answers[name] == labels,
            same_answer=answers[_FLOAT] == answers[name],
            float_rows_per_s=len(rows) / seconds[_FLOAT],
            rows_per_s=len(rows) / seconds[name],
        )
        for name in CONFIGS
    }


def _batches(texts: list[str], tokenizer: Any) -> list[dict[str, torch.Tensor]]:
    return [
        dict(tokenizer(texts[start : start + _BATCH_ROWS], padding=True, return_tensors="pt"))
        for start in range(0, len(texts), _BATCH_ROWS)
    ]


@torch.inference_mode()
def _answers(model: Any, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([model(**batch).logits.argmax(-1) for batch in batches])


def _alternating(measures: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Return the median seconds of each, run in turn so that all meet the same neighbours."""
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            start_s = time.perf_counter()
            measure()
            seconds[name].append(time.perf_counter() - start_s)
    return {name: statistics.median(found) for name, found in seconds.items()}
