"""The benchmark `engine_checks`: answers, endurance, and what guessing tokens is worth.

make bench NAME=engine_checks, or one measure: python benchmarks/engine_checks.py --only soak
"""

import sys

from engine_checks_measures.answers import answers
from engine_checks_measures.soak import soak
from engine_checks_measures.speculation import speculation
from suite import Measure, parser, run_measures

NAME = "engine_checks"

MEASURES: dict[str, Measure] = {"answers": answers, "soak": soak, "speculation": speculation}


def main() -> int:
    """Run the measures and show their rows; the results file is written by a full run only."""
    arguments = parser(MEASURES, description=main.__doc__).parse_args()
    measures = {name: MEASURES[name] for name in arguments.only or MEASURES}
    return run_measures(
        NAME,
        measures,
        quick=arguments.quick,
        is_full=measures.keys() == MEASURES.keys(),
        save_as=arguments.save_as,
    )


if __name__ == "__main__":
    sys.exit(main())
