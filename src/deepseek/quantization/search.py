"""Sensitivity and promotion: which layers must be finer for a model to keep its accuracy.

Layers are grouped in units (attention or feed-forward of one block). A unit's sensitivity is how
far the model moves from the float model, on the search data, when this unit alone is quantized.
Promotions (int4 to int8 to 16 bits) are ordered by the divergence they take away per bit they cost;
then the shortest beginning of that order which meets the threshold on the held-out data is found
by bisection. Weights are nested, so that trying a precision moves no data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from deepseek.core.precision import Precision
from deepseek.quantization.fidelity import Fidelity
from deepseek.quantization.measurements import Measurements
from deepseek.weights.progress import Progress

BITS = {Precision.INT4: 4, Precision.INT8: 8, Precision.FP16: 16}
_FRONT_POINTS = 8
"""Points of the size-accuracy front that an analysis adds to those that the search needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Layers that are promoted together."""

    name: str
    layers: tuple[str, ...]
    start: Precision
    num_weights: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """One unit's step to the next precision, and what it is worth."""

    unit: Unit
    to: Precision
    gain: float
    """Divergence that it takes away, on the search data."""
    cost_bits: int
    """Bits of weights that it adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A place on the size-accuracy front: the model after some promotions."""

    num_promotions: int
    weight_bits: int
    """Bits of all quantizable weights together."""
    held_out: Fidelity


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a search found; `point` is None where no number of promotions meets the threshold."""

    order: tuple[Promotion, ...]
    """Empty where the sensitivities were not asked for."""
    point: Point | None
    front: tuple[Point, ...]
    """Every point that was measured, coarsest first."""
    sensitivities: Mapping[str, Mapping[Precision, float]]


class Switchboard(Protocol):
    """Sets precisions of a model's layers and measures the model as it is then."""

    def set(self, layers: Sequence[str], precision: Precision) -> None:
        """Let these layers compute in `precision` from now on."""
        ...

    def divergence(self) -> Fidelity:
        """Return the model's distance on the search data."""
        ...

    def held_out(self) -> Fidelity:
        """Return the model's distance on the held-out data."""
        ...


class Search:
    """One search over one model; its methods leave the board as they say."""

    def __init__(
        self,
        board: Switchboard,
        units: Sequence[Unit],
        *,
        measurements: Measurements,
        progress: Progress,
    ) -> None:
        self._board = board
        self._units = units
        self._measurements = measurements
        self._progress = progress

    def run(self, *, threshold: float | None, analyse: bool) -> Outcome:
        """Promote as little as meets the threshold; leaves the board at the outcome's point.

        Without a threshold, or where it is met from the start, sensitivities are measured only if
        `analyse` asks for them; it also measures more of the front.
        """
        start = self._point(0, ())
        is_met = threshold is None or start.held_out.relative_accuracy >= threshold
        if is_met and not analyse:
            return Outcome(order=(), point=start, front=(start,), sensitivities={})
        sensitivities = self._sensitivities()
        order = promotion_order(self._units, sensitivities)
        points = {0: start}
        found: int | None = 0
        if not is_met:
            assert threshold is not None  # noqa: S101 - else it is met
            found = self._fewest(order, points, threshold)
        if analyse:
            self._add_front(order, points)
        self._apply(order[:found])  # all of them where none is enough
        return Outcome(
            order=order,
            point=None if found is None else points[found],
            front=tuple(points[number] for number in sorted(points)),
            sensitivities=sensitivities,
        )

    def _fewest(
        self, order: tuple[Promotion, ...], points: dict[int, Point], threshold: float
    ) -> int | None:
        """Return how few promotions meet the threshold; None where all do not."""
        self._progress.stage("promoting sensitive layers")
        low, high = 0, len(order)
        points[high] = self._point(high, order)
        if points[high].held_out.relative_accuracy < threshold:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            points[middle] = self._point(middle, order)
            if points[middle].held_out.relative_accuracy < threshold:
                low = middle
            else:
                high = middle
        return high

    def _add_front(self, order: tuple[Promotion, ...], points: dict[int, Point]) -> None:
        wanted = {round(len(order) * part / _FRONT_POINTS) for part in range(_FRONT_POINTS + 1)}
        missing = sorted(wanted - points.keys())
        self._progress.stage("size and accuracy", total=len(missing))
        for number in missing:
            points[number] = self._point(number, order)
            self._progress.advance()

    def _point(self, number: int, order: tuple[Promotion, ...]) -> Point:
        precisions = self._apply(order[:number])
        name = " ".join(f"{unit}={precision}" for unit, precision in precisions.items())
        fidelity = self._measurements.get(f"held out: {name}", self._board.held_out)
        bits = sum(unit.num_weights * BITS[precisions[unit.name]] for unit in self._units)
        return Point(num_promotions=number, weight_bits=bits, held_out=fidelity)

    def _apply(self, promotions: Sequence[Promotion]) -> dict[str, Precision]:
        """Set every unit to its start and then promote; return each unit's precision."""
        precisions = {unit.name: unit.start for unit in self._units}
        precisions.update({promotion.unit.name: promotion.to for promotion in promotions})
        for unit in self._units:
            self._board.set(unit.layers, precisions[unit.name])
        return precisions

    def _sensitivities(self) -> dict[str, dict[Precision, float]]:
        """Return each unit's divergence alone, at its start and at what it may be promoted to."""
        steps = [(unit, precision) for unit in self._units for precision in _below_16(unit.start)]
        self._progress.stage("measuring sensitivity", total=len(steps))
        for unit in self._units:
            self._board.set(unit.layers, Precision.FP16)
        found: dict[str, dict[Precision, float]] = {unit.name: {} for unit in self._units}
        for unit, precision in steps:

            def measure(unit: Unit = unit, precision: Precision = precision) -> Fidelity:
                self._board.set(unit.layers, precision)
                fidelity = self._board.divergence()
                self._board.set(unit.layers, Precision.FP16)
                return fidelity

            fidelity = self._measurements.get(f"alone: {unit.name}={precision}", measure)
            found[unit.name][precision] = fidelity.divergence
            self._progress.advance()
        return found


def promotion_order(
    units: Sequence[Unit], sensitivities: Mapping[str, Mapping[Precision, float]]
) -> tuple[Promotion, ...]:
    """Return every promotion, the one that helps most per bit first, a unit's own in order."""
    return tuple(_by_worth([_promotions(unit, sensitivities[unit.name]) for unit in units]))


def _by_worth(chains: list[list[Promotion]]) -> list[Promotion]:
    order: list[Promotion] = []
    while any(chains):
        best = max(
            (chain for chain in chains if chain),
            key=lambda chain: chain[0].gain / chain[0].cost_bits,
        )
        order.append(best.pop(0))
    return order


def _promotions(unit: Unit, sensitivity: Mapping[Precision, float]) -> list[Promotion]:
    ladder = [*_below_16(unit.start), Precision.FP16]
    return [
        Promotion(
            unit=unit,
            to=finer,
            gain=sensitivity[coarser] - sensitivity.get(finer, 0.0),
            cost_bits=unit.num_weights * (BITS[finer] - BITS[coarser]),
        )
        for coarser, finer in pairwise(ladder)
    ]


def _below_16(start: Precision) -> list[Precision]:
    """Return the precisions from `start` up that are quantized."""
    members = list(Precision)
    return members[members.index(start) : members.index(Precision.FP16)]
