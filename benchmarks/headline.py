"""The benchmark `headline`: one worker for all models, beside a fixed-batch server per model.

make bench NAME=headline
"""

import sys

from headline_measures.comparison import headline
from suite import Measure, parser, run_measures

NAME = "headline"

MEASURES: dict[str, Measure] = {"headline": headline}


def main() -> int:
    """Run the comparison and show its rows."""
    arguments = parser(MEASURES, description=main.__doc__).parse_args()
    return run_measures(
        NAME, MEASURES, quick=arguments.quick, is_full=True, save_as=arguments.save_as
    )


if __name__ == "__main__":
    sys.exit(main())
