"""The benchmark `batching`: what the batching policies gain, simulated and on the real engine.

make bench NAME=batching
"""

import sys
from functools import partial
from typing import Any

from batching_measures.ablation import ablation
from batching_measures.real import real
from batching_measures.simulated import simulated
from batching_measures.step_fit import step_fit
from suite import Measure, parser, run_measures

NAME = "batching"


def main() -> int:
    """Run the measures and show their rows; the results file is written by a full run only."""
    details: dict[str, Any] = {}
    measures = _measures(details)
    arguments = parser(measures, description=main.__doc__).parse_args()
    chosen = {name: measures[name] for name in arguments.only or measures}
    return run_measures(
        NAME,
        chosen,
        quick=arguments.quick,
        is_full=arguments.only is None,
        save_as=arguments.save_as,
        details=details,
    )


def _measures(details: dict[str, Any]) -> dict[str, Measure]:
    return {
        "fit": step_fit,
        "simulated": partial(simulated, details=details),
        "ablation": partial(ablation, details=details),
        "real": partial(real, details=details),
    }


if __name__ == "__main__":
    sys.exit(main())
