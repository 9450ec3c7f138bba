"""The benchmark `preloading`: ten models, device memory for four, the requests of public traces.

make bench NAME=preloading, or one measure: python benchmarks/preloading.py --only hit-rate
"""

import sys
from functools import partial
from typing import Any

import suite
from preloading_measures import measures

NAME = "preloading"


def main() -> int:
    """Run the measures and show their rows; the results file is written by a full run only."""
    details: dict[str, Any] = {}
    found = _measures(details)
    return suite.main(NAME, found, description=__doc__, details=details)


def _measures(details: dict[str, Any]) -> dict[str, suite.Measure]:
    return {
        "hit-rate": partial(measures.hit_rate, details=details),
        "skew": partial(measures.skew, details=details),
        "pace": partial(measures.pace, details=details),
        "limits": partial(measures.limits, details=details),
        "retry": partial(measures.retry, details=details),
        "ablation": partial(measures.ablation, details=details),
        "cost": partial(measures.cost, details=details),
    }


if __name__ == "__main__":
    sys.exit(main())
