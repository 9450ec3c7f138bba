"""The benchmark `batching`: what the batching policies gain, simulated and on the real engine.

make bench NAME=batching
"""

import sys
from functools import partial
from typing import Any

import suite
from batching_measures.ablation import ablation
from batching_measures.real import real
from batching_measures.simulated import simulated
from batching_measures.step_fit import step_fit

NAME = "batching"


def main() -> int:
    """Run the measures and show their rows; the results file is written by a full run only."""
    details: dict[str, Any] = {}
    measures = _measures(details)
    return suite.main(NAME, measures, description=__doc__, details=details)


def _measures(details: dict[str, Any]) -> dict[str, suite.Measure]:
    return {
        "fit": step_fit,
        "simulated": partial(simulated, details=details),
        "ablation": partial(ablation, details=details),
        "real": partial(real, details=details),
    }


if __name__ == "__main__":
    sys.exit(main())
