"""The benchmark `prefix_reuse`: how much of real conversations' prompts the KV cache finds again.

make bench NAME=prefix_reuse
"""

import sys

from prefix_measures.hit_rate import hit_rate
from suite import Measure, parser, run_measures

NAME = "prefix_reuse"
MEASURES: dict[str, Measure] = {"hit-rate": hit_rate}


def main() -> int:
    """Replay the trace and show the rows; the results file is written by a full run only."""
    arguments = parser(MEASURES, description=main.__doc__).parse_args()
    return run_measures(NAME, MEASURES, quick=arguments.quick, is_full=True)


if __name__ == "__main__":
    sys.exit(main())
