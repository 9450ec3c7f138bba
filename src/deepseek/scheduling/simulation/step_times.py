"""What a step takes, and how that is learned from a step record of the real engine.

The model is `t = fixed + prefill * a + decoding * b + context * c + pairs * d`, with noise that
multiplies. A record is what a worker writes where `pools.NAME.step_record` is set: one JSON line
per step.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from deepseek.core.errors import ConfigurationError
from deepseek.scheduling.batching.base import StepShape

WARM_UP_STEPS = 16
"""Left out at the beginning of a record: memory is touched for the first time there."""
HELD_OUT_EVERY = 5
"""Of so many steps one is not fitted, but predicted."""
_LONGEST_PAUSE_S = 0.005
"""A longer gap between two steps means that there was no work."""
_LEAST_STEPS = 40
_REWEIGHTED = 3
"""Rounds of weighting by the expected times; the first two change much."""
_TRIMMED = 0.01
"""Part of the residuals, at each end, that says nothing about the usual spread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Seconds of a step, by what it holds."""

    fixed_s: float
    per_prefill_token_s: float
    per_decoding_s: float
    per_context_token_s: float
    per_prefill_pair_s: float = 0.0
    noise: float = 0.0
    """Standard deviation of the logarithm of a step's time."""
    between_s: float = 0.0
    """Time between two steps that follow each other: the step loop's own."""

    def expected_s(self, shape: StepShape) -> float:
        """Return the mean time of such a step."""
        return (
            self.fixed_s
            + self.per_prefill_token_s * shape.num_prefill_tokens
            + self.per_decoding_s * shape.num_decoding
            + self.per_context_token_s * shape.num_context_tokens
            + self.per_prefill_pair_s * shape.num_prefill_pairs
        )


SMALL_CHAT_ON_ONE_CORE = StepTimes(
    fixed_s=0.0083,
    per_prefill_token_s=0.00067,
    per_decoding_s=0.00066,
    per_context_token_s=2.5e-6,
    per_prefill_pair_s=7.9e-7,
    noise=0.051,
    between_s=0.0002,
)
"""SmolLM2-135M in INT8 on one server core, as `benchmarks/batching.py --only fit` found it."""


class StepTiming(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a step record."""

    t: float
    """When the step began."""
    model: str
    s: float
    """What it took."""
    prefill: int
    decoding: int
    context: int
    sequences: int
    pairs: int = 0

    @property
    def shape(self) -> StepShape:
        return StepShape(
            num_prefill_tokens=self.prefill,
            num_decoding=self.decoding,
            num_context_tokens=self.context,
            num_sequences=self.sequences,
            num_prefill_pairs=self.pairs,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Fitted step times, and how well they predict."""

    times: StepTimes
    num_fitted: int
    num_held_out: int
    mape: float
    """Mean absolute error of the held-out steps, as a part of each one's time."""


def read_step_record(lines: Iterable[str | bytes], *, model: str | None = None) -> list[StepTiming]:
    """Return the steps of `model` (None: the only one there is) in the order of the record.

    Without those that held nothing: the rests of steps that a device had begun ahead. Raises
    `ConfigurationError` naming the line that is not one, or the models to choose from.
    """
    decoder = msgspec.json.Decoder(StepTiming)
    steps: list[StepTiming] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            steps.append(decoder.decode(line))
        except msgspec.DecodeError as error:
            raise ConfigurationError(
                f"step record, line {number}: is not a step: {error}", param="step_record"
            ) from None
    models = sorted({step.model for step in steps})
    if model is None and len(models) > 1:
        raise ConfigurationError(
            f"the step record holds several models, name one: {', '.join(models)}", param="model"
        )
    if model is not None and model not in models:
        raise ConfigurationError(
            f"the step record holds no model {model!r}; it holds: {', '.join(models) or 'nothing'}",
            param="model",
        )
    return [step for step in steps if step.sequences and model in (None, step.model)]


def fit_step_times(record: Sequence[StepTiming]) -> Fit:
    """Fit the step times to the steps of one model.

    Relative errors are what is minimised: a short step counts as much as a long one, and on average
    predicted and measured times agree. Every fifth
    step is held out, and tells the error. Raises `ConfigurationError` where there are too few.
    """
    steps = record[WARM_UP_STEPS:]
    if len(steps) < _LEAST_STEPS:
        raise ConfigurationError(
            f"the step record holds {len(record)} steps of the model; a fit needs "
            f"{WARM_UP_STEPS + _LEAST_STEPS} at least: record a longer run",
            param="step_record",
        )
    features = np.array([[1.0, s.prefill, s.decoding, s.context, s.pairs] for s in steps])
    seconds = np.array([s.s for s in steps])
    is_held_out = np.arange(len(steps)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    costs = _fitted(features[~is_held_out], seconds[~is_held_out])
    held_out_s = seconds[is_held_out]
    errors = np.abs(features[is_held_out] @ costs - held_out_s) / held_out_s
    times = StepTimes(
        fixed_s=float(costs[0]),
        per_prefill_token_s=float(costs[1]),
        per_decoding_s=float(costs[2]),
        per_context_token_s=float(costs[3]),
        per_prefill_pair_s=float(costs[4]),
        noise=_spread(np.log(seconds / (features @ costs))),
        between_s=_between_s(record),
    )
    return Fit(
        times=times,
        num_fitted=int((~is_held_out).sum()),
        num_held_out=int(is_held_out.sum()),
        mape=float(errors.mean()),
    )


def _fitted(
    features: npt.NDArray[np.float64], seconds: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the costs that minimise errors as parts of the expected times.

    Parts of the measured times would weigh the short ones most, and tell a mean too low.
    """
    costs = _not_negative(features / seconds[:, None], np.ones(len(seconds)))
    for _ in range(_REWEIGHTED):
        expected_s = features @ costs
        costs = _not_negative(features / expected_s[:, None], seconds / expected_s)
    return costs


def _not_negative(
    rows: npt.NDArray[np.float64], targets: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the least-squares costs, none below zero: more work never takes less time."""
    scales = np.abs(rows).max(axis=0)
    costs = np.zeros(rows.shape[1])
    used = [column for column in range(rows.shape[1]) if scales[column] > 0]
    while used:
        found, *_ = np.linalg.lstsq(rows[:, used] / scales[used], targets, rcond=None)
        if (found >= 0).all():
            costs[used] = found / scales[used]
            break
        used.pop(int(found.argmin()))
    return costs


def _spread(residuals: npt.NDArray[np.float64]) -> float:
    low, high = np.quantile(residuals, (_TRIMMED, 1 - _TRIMMED))
    return float(np.clip(residuals, low, high).std())


def _between_s(steps: Sequence[StepTiming]) -> float:
    """Return the median pause between steps that follow each other without idling."""
    pauses = [
        pause
        for step, following in itertools.pairwise(steps)
        if 0 <= (pause := following.t - step.t - step.s) < _LONGEST_PAUSE_S
    ]
    return float(np.median(pauses)) if pauses else 0.0


def is_usable(times: StepTimes) -> bool:
    """Say whether every step takes some time: else a simulation would never end."""
    return times.fixed_s > 0 or (times.per_prefill_token_s > 0 and times.per_decoding_s > 0)


def noise_factor(draw: float, *, noise: float) -> float:
    """Return what a step's mean time is multiplied with; `draw` is of the normal distribution."""
    return math.exp(noise * draw - noise * noise / 2)
