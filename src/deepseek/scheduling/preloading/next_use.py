"""How likely a model is asked for soon, from the times between its requests so far.

The histogram policy of Shahrad et al., "Serverless in the Wild" (USENIX ATC 2020), with three
changes: bins are logarithmic, so that bursts of milliseconds and weekly jobs fit into some sixty;
old gaps are forgotten; and one imagined gap stands in for what has not been seen, where the paper
falls back to a fixed time until a histogram is representative.
"""

import math
from itertools import accumulate

_SHORTEST_S = 0.01
_LONGEST_S = 7 * 24 * 3600.0
_BINS_PER_DOUBLING = 2
_NUM_BINS = math.ceil(_BINS_PER_DOUBLING * math.log2(_LONGEST_S / _SHORTEST_S))
_REMEMBERED = 200.0
_IMAGINED = 1.0


class ArrivalHistogram:
    """One model's gaps between requests, in bins of equal ratio.

    Before any gap was seen, every order of magnitude is as likely: the longer a model was not asked
    for, the longer it will not be.
    """

    def __init__(self, *, remembered: float = _REMEMBERED, imagined: float = _IMAGINED) -> None:
        """`remembered`: gaps after which one counts for 1/e; `imagined`: gaps worth the prior."""
        self._kept = math.exp(-1.0 / remembered)
        self._imagined = imagined / (_NUM_BINS + 1)
        self._counts = [0.0] * (_NUM_BINS + 1)
        """The last one is for what is longer than the longest."""
        self._longer: list[float] | None = None
        """Weight of each bin and all above; None: to be counted again."""

    @property
    def num_remembered(self) -> float:
        """The gaps that still count, old ones in part."""
        return sum(self._counts)

    def add(self, gap_s: float) -> None:
        """Count a gap, and forget a little of all before."""
        self._counts = [count * self._kept for count in self._counts]
        self._counts[int(_position(gap_s))] += 1.0
        self._longer = None

    def probability(self, *, elapsed_s: float, horizon_s: float) -> float:
        """Return how likely a request comes within the horizon, none having come for so long."""
        return 1.0 - self._survival(elapsed_s + horizon_s) / self._survival(elapsed_s)

    def _survival(self, gap_s: float) -> float:
        """Return the weight of the gaps that are longer than this; never zero."""
        if self._longer is None:
            counts = [count + self._imagined for count in self._counts]
            self._longer = list(accumulate(reversed(counts)))[::-1]
        position = _position(gap_s)
        whole = int(position)
        if whole == _NUM_BINS:
            return self._longer[_NUM_BINS]
        part = position - whole
        return (1.0 - part) * self._longer[whole] + part * self._longer[whole + 1]


def _position(gap_s: float) -> float:
    """Return where on the bins a gap is, from 0 to their number."""
    if gap_s <= _SHORTEST_S:
        return 0.0
    return min(float(_NUM_BINS), _BINS_PER_DOUBLING * math.log2(gap_s / _SHORTEST_S))
