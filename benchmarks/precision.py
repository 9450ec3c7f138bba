"""The benchmark `precision`: nested INT8/INT4 weights, their kernel and their quality.

make bench NAME=precision, or a part of it: python benchmarks/precision.py --only kernels
"""

import sys
from typing import Any

from precision_measures.kernels import kernels
from precision_measures.numerics import numerics
from suite import Measure, parser, run_measures

NAME = "precision"


def main() -> int:
    """Run the measures and show their rows; the results file is written by a full run only."""
    details: dict[str, Any] = {}
    measures: dict[str, Measure] = {
        "kernels": lambda run: kernels(run, details),
        "numerics": lambda run: numerics(run, details),
    }
    arguments = parser(measures, description=__doc__).parse_args()
    return run_measures(
        NAME,
        {name: measures[name] for name in arguments.only or measures},
        quick=arguments.quick,
        is_full=arguments.only is None,
        save_as=arguments.save_as,
        details=details,
    )


if __name__ == "__main__":
    sys.exit(main())
