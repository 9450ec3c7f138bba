"""What a step of one model takes, learned while it serves.

The time is modelled as `a + b*prefill_tokens + c*decoding + d*context_tokens + e*prefill_pairs` and
fitted by least squares that forget exponentially (recursive, as in Ljung, System Identification,
ch. 11): weights, batch, attention state that is read and attention that is computed each have their
cost (without the last, which grows with the square of a prompt, the error doubles). Errors count as
parts of the expected time, as a step's noise does: else long steps would say what short ones take.
Beside the fit a factor follows the last few steps, so that a slow-down (heat, a neighbour) is known
within a few steps, long before the fit has turned. Clock, throttling and bandwidth act on
predictions through these two alone.
"""

import math
from collections.abc import Iterable, Sequence

from deepseek.scheduling.batching.base import QueuedRequest, StepShape

_UNITS = (1.0, 64.0, 8.0, 2048.0, 16384.0)
"""Features are divided by these, so that their coefficients are of one size."""
_NUM_FEATURES = len(_UNITS)
_FORGETTING = 0.998
"""Half of what is known is of the last 350 steps; what changes sooner is for the factor."""
_START_DEVIATION = 8.0
"""What a coefficient may be at first, as a multiple of the first step's time."""
_MOST_VARIANCE = 10.0
"""By that of the start. A feature that does not vary would be forgotten without bound."""
_FACTOR_WEIGHT = 0.12
"""Of the newest step in the factor: a lasting slow-down is nine tenths known after 18 steps."""
_FACTOR_RANGE = (math.log(0.2), math.log(8.0))
_LARGEST_CHANGE = 0.6
"""Of a step in the logarithm of the factor: a stall is no slow-down."""
_NUM_UNSCALED = 4
"""Steps, from the first, that the fit has to itself."""
_SHORTEST_S = 1e-6
_QUANTILE = 0.95
_QUANTILE_GAIN = 0.02
_LARGEST_SURPRISE = 0.5
"""A residual counts as at most this part of the prediction: a stall is no news about batches."""
_NUM_CREDULOUS = 16
"""Steps, from the first, that are taken as they are."""
MIN_CHUNK_TOKENS = 16
"""A prompt goes on by at least this much, whatever bounds a step: else long prompts never end."""


class StepTimeEstimator:
    """Plain floats: it is asked before and told after every step."""

    def __init__(self) -> None:
        self._weights = [0.0] * _NUM_FEATURES
        self._covariance: list[list[float]] = []
        """Set by the first step, which tells of what size times are."""
        self._most_variance = 0.0
        self._log_factor = 0.0
        self._factor = 1.0
        self._quantile = 1.1
        """Of measured time by predicted time."""
        self.num_observed = 0

    def predict(self, *, prefill: int, decoding: int, context: int, depth: float = 0.0) -> float:
        """Return the expected seconds of a step; 0 before anything has been observed.

        `depth`: tokens that each of the prompt's rows attends to, on average.
        """
        return self._factor * self._fitted(_features(prefill, decoding, context, prefill * depth))

    def predict_safe(
        self, *, prefill: int, decoding: int, context: int, depth: float = 0.0
    ) -> float:
        """Return the seconds that nineteen of twenty such steps stay within."""
        expected_s = self.predict(prefill=prefill, decoding=decoding, context=context, depth=depth)
        return expected_s * self.spread

    @property
    def spread(self) -> float:
        """How many times their expected time nineteen of twenty steps stay within; at least 1."""
        return max(1.0, self._quantile)

    @property
    def fixed_s(self) -> float:
        """The part of a step that does not depend on what it holds: what sharing one saves."""
        return self._factor * max(0.0, self._weights[0])

    @property
    def per_decoding_s(self) -> float:
        """What one more decoding sequence adds."""
        return self._factor * max(0.0, self._weights[2]) / _UNITS[2]

    @property
    def per_pair_s(self) -> float:
        """What one more pair of a prompt's row and a token that it attends to adds."""
        return self._factor * max(0.0, self._weights[4]) / _UNITS[4]

    def largest_prefill(
        self, limit_s: float, *, decoding: int, context: int, most: int, depth: float = 0.0
    ) -> int:
        """Return how many prompt tokens fit beside the decoding ones within `limit_s`.

        At least a small chunk: see `MIN_CHUNK_TOKENS`. `depth`: as in `predict`.
        """
        if self.num_observed == 0 or limit_s == float("inf"):
            return most
        per_token_s = self._factor * max(0.0, self._weights[1]) / _UNITS[1]
        # The tokens of a chunk are context to themselves as well.
        per_token_s += self._factor * max(0.0, self._weights[3]) / _UNITS[3]
        per_token_s += self.per_pair_s * depth
        left_s = limit_s - self.predict(prefill=0, decoding=decoding, context=context)
        if left_s <= 0:
            return min(most, MIN_CHUNK_TOKENS)
        if per_token_s * most <= left_s:
            return most
        return max(min(most, MIN_CHUNK_TOKENS), int(left_s / per_token_s))

    def observe(self, shape: StepShape, seconds: float) -> None:
        """Learn what a step has taken."""
        x = _features(
            shape.num_prefill_tokens,
            shape.num_decoding,
            shape.num_context_tokens,
            shape.num_prefill_pairs,
        )
        seconds = max(seconds, _SHORTEST_S)
        if not self._covariance:
            self._start(seconds)
        fitted_s = self._fitted(x)
        if self.num_observed >= _NUM_UNSCALED and fitted_s > 0:
            self._note_factor(seconds / fitted_s)
        self._fit(x, seconds, fitted_s=fitted_s)
        self.num_observed += 1

    def _start(self, seconds: float) -> None:
        variance = (_START_DEVIATION * seconds) ** 2
        self._covariance = [
            [variance * (i == j) for j in range(_NUM_FEATURES)] for i in range(_NUM_FEATURES)
        ]
        self._most_variance = _MOST_VARIANCE * variance

    def _note_factor(self, ratio: float) -> None:
        """Follow measured by fitted time, in logarithms: twice as long weighs as half as long."""
        self._note_quantile(ratio / self._factor)
        change = math.log(ratio) - self._log_factor
        change = min(_LARGEST_CHANGE, max(-_LARGEST_CHANGE, change))
        low, high = _FACTOR_RANGE
        self._log_factor = min(high, max(low, self._log_factor + _FACTOR_WEIGHT * change))
        self._factor = math.exp(self._log_factor)

    def _note_quantile(self, ratio: float) -> None:
        """Step the quantile towards where one in twenty lies above it (Robbins and Monro)."""
        step = _QUANTILE if ratio > self._quantile else _QUANTILE - 1.0
        self._quantile = min(3.0, max(1.0, self._quantile + _QUANTILE_GAIN * step))

    def _fitted(self, x: tuple[float, ...]) -> float:
        w = self._weights
        parts = w[1] * x[1], w[2] * x[2], w[3] * x[3], w[4] * x[4]
        # More work never takes less time: a coefficient below zero is noise.
        return max(0.0, w[0]) + sum(part for part in parts if part > 0)

    def _fit(self, x: tuple[float, ...], seconds: float, *, fitted_s: float) -> None:
        # Written out: the loop between two steps waits for it.
        rows = self._covariance
        is_credulous = self.num_observed < _NUM_CREDULOUS
        # The first fits say little, and the first steps touch memory for the first time.
        unit_s = seconds if is_credulous else max(fitted_s, _SHORTEST_S)
        x0, x1, x2, x3, x4 = (value / unit_s for value in x)
        w0, w1, w2, w3, w4 = self._weights
        px = [a * x0 + b * x1 + c * x2 + d * x3 + e * x4 for a, b, c, d, e in rows]
        p0, p1, p2, p3, p4 = px
        below = _FORGETTING + p0 * x0 + p1 * x1 + p2 * x2 + p3 * x3 + p4 * x4
        surprise = seconds / unit_s - (w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3 + w4 * x4)
        if not is_credulous:
            surprise = min(_LARGEST_SURPRISE, max(-_LARGEST_SURPRISE, surprise))
        gain = surprise / below
        self._weights = [w0 + p0 * gain, w1 + p1 * gain, w2 + p2 * gain, w3 + p3 * gain,
                         w4 + p4 * gain]  # fmt: skip
        kept = 1.0 / _FORGETTING
        self._covariance = []
        for (a, b, c, d, e), p in zip(rows, px, strict=True):
            # Products of two first, which are the same on both sides of the diagonal: a difference
            # in the last bit would grow with every step that is forgotten.
            self._covariance.append(
                [(a - p * p0 / below) * kept, (b - p * p1 / below) * kept,
                 (c - p * p2 / below) * kept, (d - p * p3 / below) * kept,
                 (e - p * p4 / below) * kept]
            )  # fmt: skip
        self._bound_variances()

    def _bound_variances(self) -> None:
        rows = self._covariance
        for i, row in enumerate(rows):
            if row[i] > self._most_variance:
                shrink = (self._most_variance / row[i]) ** 0.5
                for j in range(_NUM_FEATURES):
                    row[j] *= shrink
                    rows[j][i] *= shrink


def decoding_and_context(running: Iterable[QueuedRequest]) -> tuple[int, int]:
    """Return how many of the running sequences decode, and the context they attend to."""
    decoding = context = 0
    for request in running:
        if request.num_pending == 1:
            decoding += 1
            context += request.num_computed
    return decoding, context


def prefill_depth(
    running: Iterable[QueuedRequest], waiting: Sequence[QueuedRequest], *, most: int
) -> float:
    """Return how many tokens each row of the next prompt chunk attends to, about.

    `most`: rows that a chunk has at most. Prompts in progress come before waiting ones.
    """
    for request in running:
        if request.num_pending > 1:
            return request.num_computed + min(most, request.num_pending) / 2
    return min(most, waiting[0].num_pending) / 2 if waiting else 0.0


def _features(
    prefill: int, decoding: int, context: int, pairs: float
) -> tuple[float, float, float, float, float]:
    return (
        1.0,
        prefill / _UNITS[1],
        decoding / _UNITS[2],
        context / _UNITS[3],
        pairs / _UNITS[4],
    )
