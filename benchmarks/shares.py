"""The benchmark `shares`: four models on one device, one of them with a reservation.

make bench NAME=shares, or one measure: python benchmarks/shares.py --only busy
"""

import sys

from shares_measures.measures import busy, idle, loaded
from suite import Measure, parser, run_measures

NAME = "shares"

MEASURES: dict[str, Measure] = {"busy": busy, "loaded": loaded, "idle": idle}


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
