"""The benchmark `precision`: nested INT8/INT4 weights, their kernel and their quality.

make bench NAME=precision, or a part of it: python benchmarks/precision.py --only kernels
"""

import sys
from typing import Any

import suite
from precision_measures.kernels import kernels
from precision_measures.numerics import numerics

NAME = "precision"


def main() -> int:
    """Run the measures and show their rows; the results file is written by a full run only."""
    details: dict[str, Any] = {}
    measures: dict[str, suite.Measure] = {
        "kernels": lambda run: kernels(run, details),
        "numerics": lambda run: numerics(run, details),
    }
    return suite.main(NAME, measures, description=__doc__, details=details)


if __name__ == "__main__":
    sys.exit(main())
