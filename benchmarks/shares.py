"""The benchmark `shares`: four models on one device, one of them with a reservation.

make bench NAME=shares, or one measure: python benchmarks/shares.py --only busy
"""

import sys

from shares_measures.measures import busy, idle, loaded
from suite import Measure, main

NAME = "shares"

MEASURES: dict[str, Measure] = {"busy": busy, "loaded": loaded, "idle": idle}


if __name__ == "__main__":
    sys.exit(main(NAME, MEASURES, description=__doc__))
